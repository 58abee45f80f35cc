"""Scripts that start images: their text, and what shells, TOML and Lmod make of it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from image_builder.docker import label_names
from image_builder.errors import InvalidRequest
from image_builder.launch.edf import edf
from image_builder.launch.script import KINDS, script
from image_builder.launch.start import Start, program_words
from image_builder.request.machines import Fabric, MachineFacts, load_machines

tomllib: Any = pytest.importorskip("tomllib", reason="Python reads TOML from 3.11 on")

OPENMPI = {"cic.mpi.name": "openmpi", "cic.mpi.family": "openmpi", "cic.mpi.version": "5.0.7"}
MPICH = {"cic.mpi.name": "mpich", "cic.mpi.family": "mpich", "cic.mpi.version": "3.4.3"}
CUDA = {"cic.gpu.runtime": "cuda", "cic.gpu.version": "12.8.1"}
FILE = "model_v_1.sif"
REFERENCE = "registry.example.org:5000/group/model:1"
LMOD = Path("/usr/share/lmod/lmod/init/bash")
HOSTILE = 'a\'b "c" $(touch pwned) `touch pwned` \\ ;|&<> %s [[ ]] é {}'


def start_on(machine: str, **changes: object) -> Start:
    facts = load_machines()[machine].facts(machine)
    values = {"image": OPENMPI, "machine": facts, "file": FILE, "reference": REFERENCE, **changes}
    return Start(**values)  # type: ignore[arg-type]


def test_a_slurm_script_of_a_site_with_singularity() -> None:
    made = script(start_on("marenostrum5-gpp", remarks=("warning: one thing",)))
    assert made.filename == "model_v_1.sh"
    assert made.text == (
        "#!/bin/bash\n"
        "# Runs model_v_1.sif on marenostrum5-gpp: sbatch model_v_1.sh <program> [argument ...]\n"
        "# Add what the site asks for, such as --account, --partition and --time.\n"
        "# warning: one thing\n"
        "#SBATCH --job-name=model_v_1\n"
        "#SBATCH --ntasks=2\n"
        "set -euo pipefail\n"
        "(($#)) || { echo 'Name the program: sbatch model_v_1.sh <program> [argument ...]' >&2;"
        " exit 2; }\n"
        "export UCX_POSIX_USE_PROC_LINK=${UCX_POSIX_USE_PROC_LINK:-n}\n"
        "export PMIX_MCA_gds=${PMIX_MCA_gds:-hash}\n"
        "export PMIX_MCA_psec=${PMIX_MCA_psec:-native}\n"
        'srun --mpi=pmix singularity exec model_v_1.sif "$@"\n'
    )


def test_a_slurm_script_that_loads_what_the_site_binds_its_network_with() -> None:
    text = script(start_on("frontier", image=MPICH | {"cic.gpu.runtime": "hip"})).text
    assert "#SBATCH --gpus-per-node=1\n" in text
    assert "\nmodule load olcf-container-tools apptainer-enable-mpi apptainer-enable-gpu\n" in text
    assert text.endswith('\nsrun singularity exec --rocm model_v_1.sif "$@"\n')


def test_a_slurm_script_that_writes_the_environment_definition() -> None:
    text = script(start_on("alps-daint", program=("osu_bw", "-i", "9"))).text
    assert "\nset -- osu_bw -i 9\n" in text
    assert "\n[[ -e model_1.toml ]] || cat >model_1.toml <<'END_OF_EDF'\n" in text
    assert text.endswith('\nEND_OF_EDF\nsrun --mpi=pmix --environment=./model_1.toml "$@"\n')


def test_an_environment_definition_says_it_all() -> None:
    machine = dataclasses.replace(
        start_on("alps-daint").machine, binds=("/scratch", "/opt/a:/opt/b")
    )
    text = script(dataclasses.replace(start_on("alps-daint"), machine=machine), "edf").text
    assert tomllib.loads(text) == {
        "image": "registry.example.org:5000#group/model:1",
        "mounts": ["/scratch:/scratch", "/opt/a:/opt/b"],
        "env": {
            "UCX_POSIX_USE_PROC_LINK": "n",
            "PMIX_MCA_gds": "hash",
            "PMIX_MCA_psec": "native",
        },
        "annotations": {"com": {"hooks": {"cxi": {"enabled": "true"}}}},
    }


@pytest.mark.parametrize(
    ("kind", "image", "lines"),
    [
        ("singularity", MPICH, ["srun -n 4 singularity exec model_v_1.sif <program>"]),
        ("apptainer", MPICH | CUDA, ["srun -n 4 apptainer exec --nv model_v_1.sif <program>"]),
        (
            "docker",
            OPENMPI,
            [
                "docker run --rm --env=OMPI_ALLOW_RUN_AS_ROOT=1"
                f" --env=OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 {REFERENCE} mpirun -n 4 <program>"
            ],
        ),
        (
            "podman-hpc",
            MPICH | CUDA,
            [
                f"podman-hpc pull {REFERENCE}",
                f"srun -n 4 podman-hpc run --rm --mpi --gpu {REFERENCE} <program>",
            ],
        ),
        (
            "podman-hpc",
            OPENMPI,
            [
                f"podman-hpc pull {REFERENCE}",
                f"srun -n 4 podman-hpc run --rm {REFERENCE} <program>",
            ],
        ),
        (
            "shifter",
            MPICH | CUDA,
            [
                f"shifterimg pull docker:{REFERENCE}",
                f"srun -n 4 shifter --image=docker:{REFERENCE} --module=gpu,cuda-mpich <program>",
            ],
        ),
        (
            "sarus",
            MPICH,
            [f"sarus pull {REFERENCE}", f"srun -n 4 sarus run --mpi {REFERENCE} <program>"],
        ),
        ("sarus", {}, [f"sarus pull {REFERENCE}", f"sarus run {REFERENCE} <program>"]),
    ],
)
def test_lines_of_each_engine(kind: str, image: dict[str, str], lines: list[str]) -> None:
    start = start_on("perlmutter-gpu", image=image, processes=4)
    exports = ["export UCX_POSIX_USE_PROC_LINK=n"] if image and kind != "docker" else []
    assert script(start, kind).text.splitlines() == exports + lines


def test_binds_reach_every_engine() -> None:
    machine = MachineFacts(platform="linux/amd64", binds=("/opt/cray", "/a:/b"))
    for kind in KINDS:
        start = dataclasses.replace(start_on("vega-cpu", image={}), machine=machine)
        text = script(start, kind).text
        assert "/opt/cray" in text and "/a" in text, kind


@pytest.mark.parametrize(
    ("machine", "kind"), [("fugaku", "slurm"), ("lumi-c", "pbs"), ("lumi-c", "rkt\n")]
)
def test_a_kind_that_there_is_not(machine: str, kind: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        script(start_on(machine), kind)
    [problem] = caught.value.problems
    assert problem.field == "kind" and "write" in problem.hint


def test_a_site_with_another_batch_system_gets_the_line() -> None:
    assert script(start_on("fugaku")).text.endswith(
        "mpiexec -n 2 singularity exec model_v_1.sif <program>\n"
    )


@pytest.mark.parametrize("text", ["'open", "a\nb", "x" * 1001, "a\x1b[2J"])
def test_a_program_that_is_no_command_line_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        program_words(text)
    assert caught.value.problems[0].field == "program"


def hostile() -> Start:
    """Return a start with every text a stranger's, as far as checks let it through."""
    machine = MachineFacts(
        name=HOSTILE + "\n#SBATCH --uid=0",
        platform="linux/amd64",
        launcher="srun " + "'; touch pwned; '",
        binds=(HOSTILE,),
        fabric=Fabric(annotations={"a.b": HOSTILE}, advice=HOSTILE + "\ntouch pwned"),
    )
    return Start(
        image=MPICH,
        machine=machine,
        file=HOSTILE.replace("/", "_") + ".sif",
        reference="r.org/" + HOSTILE,
        program=("say", HOSTILE),
        remarks=(HOSTILE + "\n#SBATCH --uid=0\ntouch pwned",),
    )


def commands_for(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment whose `names` are programs that print their arguments, one a line."""
    place = folder / "bin"
    place.mkdir()
    for name in names:
        (place / name).write_text('#!/bin/sh\nprintf \'%s\\n\' "${0##*/}" "$@"\n')
        (place / name).chmod(0o755)
    return {"PATH": f"{place}:{os.defpath}"}


def test_bash_puts_the_sites_mpi_in_place_of_the_images(tmp_path: Path) -> None:
    image = {
        label_names.FACTS: "1",
        label_names.MPI_NAME: "mpi-abi",
        label_names.MPI_FAMILY: "mpi-abi",
        label_names.MPI_PMI: "none",
        label_names.MPI_NEEDED: "libmpi_abi.so.1",
    }
    machine = MachineFacts(platform="linux/amd64", mpi="mpich@5.0", pmi=("none", "pmi2"))
    start = Start(image=image, machine=machine, file=FILE, reference=REFERENCE, program=("x",))
    (tmp_path / "job.sh").write_text(script(start, "slurm").text)
    environment = commands_for(tmp_path, "srun")

    def ran(**more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(tmp_path / "job.sh")]
        return subprocess.run(command, capture_output=True, text=True, env=environment | more)

    without = ran()
    assert without.returncode and "SITE_MPI: has to name the folder" in without.stderr
    assert ran(SITE_MPI="/opt/my mpi/lib").stdout.splitlines() == [
        *("srun", "--mpi=pmi2", "singularity", "exec"),
        *("--bind", "/opt/my mpi/lib:/opt/site-mpi:ro", "--env", "LD_LIBRARY_PATH=/opt/site-mpi"),
        *(FILE, "x"),
    ]


@pytest.mark.parametrize("engine", ["singularity", "apptainer", "podman-hpc", "sarus", "edf"])
def test_bash_runs_a_hostile_script_as_it_reads(tmp_path: Path, engine: str) -> None:
    start = hostile()
    start = dataclasses.replace(start, machine=dataclasses.replace(start.machine, engine=engine))
    file = tmp_path / "job.sh"
    file.write_text(script(start, "slurm").text)
    environment = commands_for(tmp_path, "srun")
    ran = subprocess.run(
        ["bash", str(file)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    words = ran.stdout.splitlines()
    assert words[0] == "srun" and "; touch pwned; " in words
    assert words[-2:] == ["say", HOSTILE]
    assert engine == "edf" or (start.image_for(engine) in words)
    assert not (tmp_path / "pwned").exists()
    options = [line for line in file.read_text().splitlines() if line.startswith("#SBATCH")]
    assert not any("uid" in line for line in options) and all("$" not in one for one in options)


@pytest.mark.parametrize("kind", ["singularity", "podman-hpc", "shifter", "sarus", "docker"])
def test_bash_runs_hostile_lines_as_they_read(tmp_path: Path, kind: str) -> None:
    names = ("srun", "podman-hpc", "shifterimg", "sarus", "docker")
    ran = subprocess.run(
        ["bash", "-c", script(hostile(), kind).text],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=commands_for(tmp_path, *names),
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-2:] == ["say", HOSTILE]
    assert not (tmp_path / "pwned").exists()


def test_a_hostile_environment_definition_holds_what_it_was_given() -> None:
    start = hostile()
    held = tomllib.loads(edf(dataclasses.replace(start, reference="r.org/\x7f\x01\U0001f600")))
    assert held["image"] == "r.org#\x7f\x01\U0001f600"
    assert held["annotations"] == {"a": {"b": HOSTILE}}


@pytest.mark.skipif(not LMOD.exists(), reason="Lmod is not installed")
@pytest.mark.parametrize("engine", ["singularity", "podman-hpc"])
def test_lmod_loads_a_module_whose_commands_run_programs(tmp_path: Path, engine: str) -> None:
    start = hostile()
    machine = dataclasses.replace(start.machine, engine=engine)
    modules = tmp_path / "my modules"
    modules.mkdir()
    made = script(dataclasses.replace(start, machine=machine, program=("gmx", "python3")), "module")
    (modules / "model.lua").write_text(made.text)
    line = f"source {LMOD}; module use '{modules}'; module load model; gmx 'a b'; cic-exec ls '*'"
    environment = commands_for(tmp_path, engine)
    environment["PATH"] += ":/usr/bin:/bin"
    ran = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    words = ran.stdout.splitlines()
    assert words[0] == engine and ran.stderr == "", ran.stderr
    image = start.reference if engine != "singularity" else f"{modules}/{start.file}"
    assert words[words.index("gmx") - 1] == image
    assert words[words.index("gmx") + 1] == "a b" and words[-2:] == ["ls", "*"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.skipif(not LMOD.exists(), reason="Lmod is not installed")
def test_lmod_makes_commands_of_the_images_programs(tmp_path: Path) -> None:
    machine = MachineFacts(platform="linux/amd64")
    image = {label_names.PROGRAMS: "gmx_mpi,lmp,x;touch pwned,"}
    start = Start(image=image, machine=machine, file=FILE, reference=REFERENCE)
    (tmp_path / "model.lua").write_text(script(start, "module").text)
    line = (
        f"source {LMOD}; module use {tmp_path}; module load model; lmp -in 'a file';"
        " type -t gmx_mpi cic-exec; module unload model; type -t gmx_mpi cic-exec || echo gone"
    )
    environment = commands_for(tmp_path, "singularity")
    environment["PATH"] += ":/usr/bin:/bin"
    ran = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert ran.stdout.splitlines() == [
        *("singularity", "exec", f"{tmp_path}/{FILE}", "lmp", "-in", "a file"),
        *("function", "function", "gone"),
    ], ran.stderr
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("program", ["a b", "x;y", "-n", "$(id)", "é"])
def test_a_module_refuses_what_cannot_be_a_command(program: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        script(start_on("lumi-c", program=(program,)), "module")
    assert caught.value.problems[0].field == "program"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("machine", ["lumi-g", "alps-daint", "frontier", "perlmutter-gpu"])
def test_shellcheck_finds_nothing(tmp_path: Path, machine: str) -> None:
    (tmp_path / "job.sh").write_text(script(start_on(machine, image=MPICH | CUDA), "slurm").text)
    subprocess.run(["shellcheck", str(tmp_path / "job.sh")], check=True)
