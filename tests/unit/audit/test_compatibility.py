"""An image's labels against machines."""

from __future__ import annotations

import dataclasses

import pytest

from image_builder.audit.compatibility import check
from image_builder.request import gpu_drivers
from image_builder.request.machines import MachineFacts

IMAGE = {
    "cic.platform": "linux/amd64",
    "cic.target": "zen2",
    "cic.mpi.name": "openmpi",
    "cic.mpi.family": "openmpi",
    "cic.mpi.version": "4.1.6",
}
CUDA = IMAGE | {"cic.gpu.runtime": "cuda", "cic.gpu.version": "12.8.1", "cic.gpu.arch": "80"}
ROCM = IMAGE | {"cic.gpu.runtime": "hip", "cic.gpu.version": "6.2.1", "cic.gpu.arch": "gfx90a"}
ROME = MachineFacts(
    name="rome",
    platform="linux/amd64",
    architecture="rome",
    mpi="openmpi@4.1.4",
    gpu="cuda@12.8",
    gpu_arch="a100",
    driver="570.124.06",
)
LUMI = MachineFacts(
    name="hills",
    platform="linux/amd64",
    architecture="trento",
    mpi="openmpi@4",
    gpu="rocm@6.0",
    gpu_arch="mi250x",
)


def levels(image: dict[str, str], machine: MachineFacts) -> list[tuple[str, str]]:
    return [(finding.level, finding.subject) for finding in check(image, machine).findings]


def test_the_right_pairing_is_accepted_and_says_how_to_run() -> None:
    report = check(CUDA, ROME, file="model.sif", program="/bin/model")
    assert report.ok and report.findings == ()
    assert report.run_command == "srun --mpi=pmix -n 2 singularity exec --nv model.sif /bin/model"


@pytest.mark.parametrize(
    ("changes", "level", "subject", "says"),
    [
        ({"architecture": "haswell"}, "error", "cpu", "clwb"),
        ({"architecture": "broadwell"}, "error", "cpu", "broadwell"),
        ({"platform": "linux/arm64", "architecture": "grace"}, "error", "platform", "linux/arm64"),
        ({"mpi": "mpich@4.0"}, "error", "mpi", 'Build it with "mpi": "mpich@4".'),
        ({"mpi": "cray-mpich@8.1"}, "error", "mpi", "programs of one do not run with the other"),
        ({"mpi": "impi@2021"}, "error", "mpi", "intel-oneapi-mpi"),
        ({"mpi": "openmpi@5.0"}, "error", "mpi", "another major release"),
        ({"mpi": None}, "warning", "mpi", "not known"),
        ({"driver": "470.82.01"}, "error", "gpu", "525.60.13 or newer"),
        ({"driver": "550.54.14"}, "warning", "gpu", "minor version compatibility"),
        ({"driver": None, "gpu": "cuda@11.4"}, "error", "gpu", "525.60.13 or newer"),
        ({"driver": None, "gpu": "cuda@12.2"}, "warning", "gpu", "minor version compatibility"),
        ({"driver": None, "gpu": None, "gpu_arch": None}, "error", "gpu", "no GPU"),
        ({"driver": None, "gpu": "rocm@6.0", "gpu_arch": None}, "error", "gpu", "hip@6.0"),
        ({"gpu_arch": "v100"}, "error", "gpu", "70"),
        ({"gpu_arch": "h100"}, "warning", "gpu", "PTX"),
        ({"architecture": None}, "warning", "cpu", "not known"),
    ],
)
def test_pairings_that_need_a_word(
    changes: dict[str, str | None], level: str, subject: str, says: str
) -> None:
    [finding] = check(CUDA, dataclasses.replace(ROME, **changes)).findings  # type: ignore[arg-type]
    assert (finding.level, finding.subject) == (level, subject)
    assert says in str(finding)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "zen3"},
        {"architecture": "genoa"},
        {"mpi": "openmpi@4.0"},
        {"mpi": "hpcx-mpi@2.20"},
        {"driver": "580.65.06"},
        {"gpu_arch": "a40"},
        {"gpu_arch": None},
        {"mpi": "openmpi"},
    ],
)
def test_machines_that_are_newer_or_say_less(changes: dict[str, str]) -> None:
    assert check(CUDA, dataclasses.replace(ROME, **changes)).findings == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "host", "fits"),
    [
        ("haswell", "zen2", True),
        ("x86_64_v3", "zen3", True),
        ("zen2", "icelake", False),
        ("icelake", "zen3", False),
        ("x86_64_v4", "haswell", False),
        ("x86_64_v4", "sapphirerapids", True),
    ],
)
def test_cpus_of_two_vendors(target: str, host: str, fits: bool) -> None:
    assert (
        check(IMAGE | {"cic.target": target}, dataclasses.replace(ROME, architecture=host)).ok
        is fits
    )


def test_a_power_cpu_does_not_run_what_a_newer_one_does() -> None:
    image = {"cic.platform": "linux/ppc64le", "cic.target": "power9le"}
    machine = MachineFacts(platform="linux/ppc64le", architecture="power8le")
    assert levels(image, machine) == [("error", "cpu")]


def test_the_mpich_family_understands_itself() -> None:
    image = IMAGE | {"cic.mpi.name": "mpich", "cic.mpi.family": "mpich", "cic.mpi.version": "4.2.3"}
    report = check(image, dataclasses.replace(ROME, mpi="cray-mpich@8.1.29"))
    assert report.ok
    assert report.run_command.startswith("srun --mpi=pmi2 ")


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("rocm@6.0", []),
        ("rocm@6.3", []),
        ("rocm@5.4", [("error", "gpu")]),
        ("rocm@7.1", [("warning", "gpu")]),
        ("rocm@6", []),
    ],
)
def test_rocm_against_the_driver(site: str, expected: list[tuple[str, str]]) -> None:
    assert levels(ROCM, dataclasses.replace(LUMI, gpu=site)) == expected


def test_rocm_code_runs_on_its_own_architecture_alone() -> None:
    assert levels(ROCM, dataclasses.replace(LUMI, gpu_arch="mi300x")) == [("error", "gpu")]


def test_lines_that_run_an_image() -> None:
    binds = dataclasses.replace(
        LUMI, launcher="srun --mpi=cray_shasta", binds=("/opt/cray", "/var/spool")
    )
    assert check(ROCM, binds).run_command == (
        "srun --mpi=cray_shasta -n 2 singularity exec --rocm "
        "--bind /opt/cray,/var/spool image.sif <program>"
    )
    serial = {"cic.platform": "linux/amd64", "cic.target": "x86_64"}
    assert (
        check(serial, ROME, file="my file.sif").run_command
        == "singularity exec 'my file.sif' <program>"
    )
    docker = dataclasses.replace(ROME, engine="docker")
    assert check(CUDA, docker, file="group/model:1").run_command == (
        "docker run --rm --gpus all group/model:1 mpirun -n 2 <program>"
    )


def test_an_image_that_says_nothing_of_itself() -> None:
    report = check({}, ROME)
    assert report.ok and [finding.subject for finding in report.findings] == ["labels"]
    assert report.as_dict()["findings"][0]["level"] == "warning"


@pytest.mark.parametrize(
    ("cuda", "driver"),
    [
        ("12.8.1", "525.60.13"),
        ("11.0.3", "450.80.02"),
        ("10.2.89", "440.33"),
        ("13", "580"),
        ("99.1", None),
    ],
)
def test_the_oldest_driver_of_a_cuda_release(cuda: str, driver: str | None) -> None:
    assert gpu_drivers.minimal_driver(cuda) == driver
