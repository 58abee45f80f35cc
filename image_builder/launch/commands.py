"""Makes the command lines that run a program in an image, from the image's labels. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence

from image_builder.docker import label_names
from image_builder.launch.facts import launcher_pmi, runs_sifs, takes_site_mpi
from image_builder.request.machines import MachineFacts

PROCESSES = 2
PROGRAM = "<program>"
"""Placeholder of the user's program; a word like it is not quoted."""

SITE_MPI = "SITE_MPI"
"""The variable that names the folder of the site's MPI, where that takes the place of the image's."""
_SITE_MPI_PLACE = "CIC_SITE_MPI_PLACE"
_SITE_MPI_WORDS = (
    "--bind",
    f"{_SITE_MPI_PLACE}:/opt/site-mpi:ro",
    "--env",
    "LD_LIBRARY_PATH=/opt/site-mpi",
)
_SINGULARITY_GPU = {"cuda": ("--nv",), "hip": ("--rocm",)}
_AS_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
"""Without these Open MPI's mpirun refuses to run as root, as it does in Docker's containers."""
_DOCKER_GPU = {
    "cuda": ("--gpus", "all"),
    "hip": ("--device", "/dev/kfd", "--device", "/dev/dri"),
}


def run_command(
    image: Mapping[str, str],
    machine: MachineFacts,
    *,
    file: str,
    reference: str | None = None,
    program: str = PROGRAM,
) -> str:
    """Return the line that runs `program` of the image on the machine.

    It runs in parallel where the image has an MPI. `file` is the SIF, and `reference` the name in
    an image registry, for engines that read no SIF.
    """
    name = file if runs_sifs(machine.engine) else reference or file
    if machine.engine == "docker":
        return docker_command(image, name, program=program, binds=machine.binds)
    words = [
        *launcher_words(image, machine),
        *engine_words(image, machine, machine.engine, name),
    ]
    if machine.engine == "edf" and label_names.MPI_FAMILY not in image:
        words = ["srun", "-n", "1", *words]
    return _line(*words, program=program)


def singularity_command(
    image: Mapping[str, str],
    file: str,
    *,
    program: str = PROGRAM,
    action: str = "exec",
) -> str:
    """Return the line that runs `program` in a SIF on a machine that nothing is known of.

    With `action="run"`, it runs through the image's entry point.
    """
    machine = MachineFacts(platform="")
    engine = _singularity(image, machine, "singularity", file)
    words = (engine[0], action, *engine[2:])
    return _line(*launcher_words(image, machine), *words, program=program)


def docker_command(
    image: Mapping[str, str],
    name: str,
    *,
    program: str = PROGRAM,
    binds: Sequence[str] = (),
) -> str:
    """Return the line that runs `program` in an image that Docker has under this name."""
    machine = MachineFacts(platform="", binds=tuple(binds))
    parallel = ("mpirun", "-n", str(PROCESSES)) if label_names.MPI_FAMILY in image else ()
    return _line(*_docker(image, machine, "docker", name), *parallel, program=program)


def launcher_words(
    image: Mapping[str, str], machine: MachineFacts, *, processes: int | None = PROCESSES
) -> tuple[str, ...]:
    """Return what starts the processes of an image's MPI; without an MPI, nothing.

    In a batch job Slurm knows how many (`processes` is None).
    """
    if label_names.MPI_FAMILY not in image:
        return ()
    words = shlex.split(machine.launcher or "srun")
    pmi = launcher_pmi(image, machine)
    if pmi and words[0] == "srun":
        words = [word for word in words if not word.startswith("--mpi=")]
        words.insert(1, f"--mpi={pmi}")
    return (*words, "-n", str(processes)) if processes is not None else tuple(words)


def engine_words(
    image: Mapping[str, str], machine: MachineFacts, engine: str, name: str
) -> tuple[str, ...]:
    """Return what an engine needs before the program: `name` is a SIF, or an image's reference."""
    return _ENGINES[engine](image, machine, engine, name)


def shell_line(words: Sequence[str]) -> str:
    """Return words as a shell reads them; the site's MPI is where its variable says."""
    return shlex.join(words).replace(_SITE_MPI_PLACE, f'"${SITE_MPI}"')


def edf_name(name: str) -> str:
    """Return the file name of the environment definition of an image."""
    stem = name.rpartition("/")[2].removesuffix(".sif")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).lstrip("-.") + ".toml"


def _singularity(
    image: Mapping[str, str], machine: MachineFacts, engine: str, name: str
) -> tuple[str, ...]:
    binds = ("--bind", ",".join(machine.binds)) if machine.binds else ()
    site_mpi = _SITE_MPI_WORDS if takes_site_mpi(image, machine) else ()
    return (engine, "exec", *_gpu(image, _SINGULARITY_GPU), *binds, *site_mpi, name)


def _docker(
    image: Mapping[str, str], machine: MachineFacts, engine: str, name: str
) -> tuple[str, ...]:
    gpu = _gpu(image, _DOCKER_GPU)
    is_openmpi = image.get(label_names.MPI_FAMILY) == "openmpi"
    root = [f"--env={name}=1" for name in _AS_ROOT] if is_openmpi else []
    return ("docker", "run", "--rm", *gpu, *root, *_volumes(machine.binds), name)


def _podman_hpc(
    image: Mapping[str, str], machine: MachineFacts, engine: str, name: str
) -> tuple[str, ...]:
    """Return podman-hpc's words; its `--mpi` replaces an MPICH, but no Open MPI, by Cray MPICH."""
    mpi = ("--mpi",) if _is_mpich(image) else ()
    gpu = _gpu(image, {"cuda": ("--gpu",)})
    return ("podman-hpc", "run", "--rm", *mpi, *gpu, *_volumes(machine.binds), name)


def _shifter(
    image: Mapping[str, str], machine: MachineFacts, engine: str, name: str
) -> tuple[str, ...]:
    has_gpu = image.get(label_names.GPU_RUNTIME) == "cuda"
    modules = [
        *(["gpu"] if has_gpu else []),
        *(["cuda-mpich" if has_gpu else "mpich"] if _is_mpich(image) else []),
    ]
    return (
        "shifter",
        f"--image=docker:{name}",
        *([f"--module={','.join(modules)}"] if modules else []),
        *_volumes(machine.binds),
    )


def _sarus(
    image: Mapping[str, str], machine: MachineFacts, engine: str, name: str
) -> tuple[str, ...]:
    mounts = [
        f"--mount=type=bind,source={source},destination={destination}"
        for source, destination in map(both_ends, machine.binds)
    ]
    return ("sarus", "run", *(["--mpi"] if _is_mpich(image) else []), *mounts, name)


def _edf(
    image: Mapping[str, str], machine: MachineFacts, engine: str, name: str
) -> tuple[str, ...]:
    """Return the words for the Container Engine: Slurm's own option; the file says the rest."""
    return (f"--environment=./{edf_name(name)}",)


_ENGINES: Mapping[str, Callable[[Mapping[str, str], MachineFacts, str, str], tuple[str, ...]]] = {
    "singularity": _singularity,
    "apptainer": _singularity,
    "docker": _docker,
    "podman-hpc": _podman_hpc,
    "shifter": _shifter,
    "sarus": _sarus,
    "edf": _edf,
}


def _is_mpich(image: Mapping[str, str]) -> bool:
    return image.get(label_names.MPI_FAMILY) == "mpich"


def _volumes(binds: Sequence[str]) -> list[str]:
    return [f"--volume={':'.join(both_ends(bind))}" for bind in binds]


def both_ends(bind: str) -> tuple[str, str]:
    """Return the host's and the container's folder of a bind; `/opt/cray` is both of them.

    `/a:/b` has `/a` and `/b`.
    """
    source, _, destination = bind.partition(":")
    return source, destination or source


def _gpu(image: Mapping[str, str], options: Mapping[str, Sequence[str]]) -> Sequence[str]:
    return options.get(image.get(label_names.GPU_RUNTIME, ""), ())


def _line(*words: str, program: str) -> str:
    return f"{shell_line(words)} {program if program.startswith('<') else shlex.quote(program)}"
