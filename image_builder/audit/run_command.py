"""The command line that runs a program in an image, from what the image's labels say. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from image_builder.recipe import labels
from image_builder.request.machines import MachineFacts

PROCESSES = 2
PROGRAM = "<program>"
"""Stands where the user's program goes; a word like it is not quoted."""

_SINGULARITY_GPU = {"cuda": ("--nv",), "hip": ("--rocm",)}
_DOCKER_GPU = {
    "cuda": ("--gpus", "all"),
    "hip": ("--device", "/dev/kfd", "--device", "/dev/dri"),
}


def run_command(
    image: Mapping[str, str], machine: MachineFacts, *, file: str, program: str = PROGRAM
) -> str:
    """Return the line that runs `program` of the image on the machine; in parallel where the image
    has an MPI.
    """
    if machine.engine == "docker":
        return docker_command(image, file, program=program)
    return singularity_command(
        image, file, program=program, launcher=machine.launcher, binds=machine.binds
    )


def singularity_command(
    image: Mapping[str, str],
    file: str,
    *,
    program: str = PROGRAM,
    action: str = "exec",
    launcher: str | None = None,
    binds: Sequence[str] = (),
) -> str:
    """Return the line that runs `program` in a SIF; with `action="run"`, through its entry point.

    `launcher` starts the processes of an MPI where `srun` does not.
    """
    return _line(
        *_launcher(image, launcher),
        "singularity",
        action,
        *_gpu(image, _SINGULARITY_GPU),
        *(("--bind", ",".join(binds)) if binds else ()),
        file,
        program=program,
    )


def docker_command(image: Mapping[str, str], name: str, *, program: str = PROGRAM) -> str:
    """Return the line that runs `program` in an image that Docker has under this name."""
    parallel = ("mpirun", "-n", str(PROCESSES)) if labels.MPI_FAMILY in image else ()
    gpu = _gpu(image, _DOCKER_GPU)
    return _line("docker", "run", "--rm", *gpu, name, *parallel, program=program)


def _launcher(image: Mapping[str, str], launcher: str | None) -> Iterable[str]:
    if labels.MPI_FAMILY not in image:
        return ()
    if launcher:
        return (*shlex.split(launcher), "-n", str(PROCESSES))
    pmi = "pmix" if image[labels.MPI_FAMILY] == "openmpi" else "pmi2"
    return ("srun", f"--mpi={pmi}", "-n", str(PROCESSES))


def _gpu(image: Mapping[str, str], options: Mapping[str, Sequence[str]]) -> Sequence[str]:
    return options.get(image.get(labels.GPU_RUNTIME, ""), ())


def _line(*words: str, program: str) -> str:
    return f"{shlex.join(words)} {program if program.startswith('<') else shlex.quote(program)}"
