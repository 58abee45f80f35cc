"""Writes a Slurm job script that runs a program of an image. Pure; every value in it is quoted.

Its form: https://slurm.schedmd.com/sbatch.html
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from image_builder.docker import label_names
from image_builder.launch.commands import (
    SITE_MPI,
    edf_name,
    engine_words,
    launcher_words,
    shell_line,
)
from image_builder.launch.edf import edf
from image_builder.launch.facts import takes_site_mpi
from image_builder.launch.start import Start, comments

_END_OF_EDF = "END_OF_EDF"


def slurm_script(start: Start) -> str:
    """Return the script. Its arguments are the program's, where `start` names none."""
    return "\n".join(["#!/bin/bash", *_head(start), "set -euo pipefail", *_body(start), ""])


def _head(start: Start) -> Iterator[str]:
    """Yield the comments, which Slurm reads its options from."""
    name = f"{start.title}.sh"
    usage = f"sbatch {name}" + ("" if start.program else " <program> [argument ...]")
    said = [f"Runs {start.file or start.reference} on {start.machine.name}: {usage}"]
    said += [
        "Add what the site asks for, such as --account, --partition and --time.",
        *start.remarks,
    ]
    if start.machine.fabric and start.machine.fabric.advice:
        said.append(start.machine.fabric.advice)
    yield comments(*said).rstrip("\n")
    yield f"#SBATCH --job-name={start.title}"
    yield f"#SBATCH --ntasks={start.processes if start.is_parallel else 1}"
    if label_names.GPU_RUNTIME in start.image:
        yield "#SBATCH --gpus-per-node=1"
    if start.machine.engine == "shifter":
        yield f"#SBATCH --image=docker:{shlex.quote(start.reference)}"


def _body(start: Start) -> Iterator[str]:
    if start.program:
        yield f"set -- {shlex.join(start.program)}"
    else:
        yield (
            f"(($#)) || {{ echo 'Name the program: sbatch {start.title}.sh <program> [argument ...]' "
            ">&2; exit 2; }"
        )
    modules = start.machine.fabric.modules if start.machine.fabric else ()
    if modules:
        yield f"module load {shlex.join(modules)}"
    for name, value in start.environment.items():
        yield f"export {name}=${{{name}:-{shlex.quote(value)}}}"
    if start.machine.engine == "edf":
        yield from _edf_file(start)
    if takes_site_mpi(start.image, start.machine):
        yield f': "${{{SITE_MPI}:?has to name the folder of libmpi_abi.so.1 on this machine}}"'
    yield f"{shell_line(_words(start))} {_count(start)}"


def _words(start: Start) -> tuple[str, ...]:
    engine = start.machine.engine
    words = engine_words(start.image, start.machine, engine, start.image_for(engine))
    if engine == "docker":
        return words
    launcher = launcher_words(start.image, start.machine, processes=None) or ("srun",)
    if launcher[0] != "srun":
        return (*launcher, "-n", str(start.processes), *words)
    return (*launcher, *words)


def _count(start: Start) -> str:
    """Return the program's line; Docker's containers start their ranks themselves, by `mpirun`."""
    if start.machine.engine == "docker" and start.is_parallel:
        return f'mpirun -n {start.processes} "$@"'
    return '"$@"'


def _edf_file(start: Start) -> Iterator[str]:
    """Yield what writes the environment definition, unless its reader has changed it."""
    name = shlex.quote(edf_name(start.reference))
    yield f"[[ -e {name} ]] || cat >{name} <<'{_END_OF_EDF}'"
    yield edf(start) + _END_OF_EDF
