"""Makes what starts a program of an image on a machine, in the form that is asked for. Pure."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.launch.commands import edf_name, engine_words, launcher_words, shell_line
from image_builder.launch.edf import edf
from image_builder.launch.module import lmod_module
from image_builder.launch.slurm import slurm_script
from image_builder.launch.start import Start, comments

FETCH: Mapping[str, tuple[str, ...]] = {
    "podman-hpc": ("podman-hpc", "pull"),
    "sarus": ("sarus", "pull"),
    "shifter": ("shifterimg", "pull"),
}
"""Commands that fetch an image to where an engine runs it, for engines that need that first."""

_FORMS: Mapping[str, Callable[[Start], str]] = {
    "slurm": slurm_script,
    "edf": edf,
    "module": lmod_module,
}
KINDS = (*_FORMS, "singularity", "apptainer", "docker", "podman-hpc", "shifter", "sarus")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """Holds a text, and the name of the file to keep it in."""

    text: str
    filename: str


def script(start: Start, kind: str | None = None) -> Script:
    """Return what starts `start`, as one of `KINDS`.

    None is a Slurm job script where the machine has Slurm, and else the line of the site's engine.
    Raises `InvalidRequest`.
    """
    machine = start.machine
    kind = kind or ("slurm" if machine.batch == "slurm" else machine.engine)
    if kind not in KINDS:
        hint = f"write one of {', '.join(KINDS)}"
        raise InvalidRequest([FieldProblem("kind", f"unknown kind {kind[:60]!r}", hint)])
    if kind == "slurm" and machine.batch != "slurm":
        hint = f"write kind={machine.engine}"
        problem = f"{machine.name} has another batch system than Slurm"
        raise InvalidRequest([FieldProblem("kind", problem, hint)])
    text = _FORMS[kind](start) if kind in _FORMS else _engine_lines(start, kind)
    return Script(text=text, filename=_filename(start, kind))


def _engine_lines(start: Start, engine: str) -> str:
    """Return the lines that fetch the image, where that is needed, and run a program in it."""
    machine = dataclasses.replace(start.machine, engine=engine)
    name = start.image_for(engine)
    variables = {} if engine == "docker" else start.environment  # its ranks share one container
    lines = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    if engine in FETCH:
        fetched = f"docker:{name}" if engine == "shifter" else name
        lines.append(shlex.join((*FETCH[engine], fetched)))
    launcher = launcher_words(start.image, machine, processes=start.processes)
    words = engine_words(start.image, machine, engine, name)
    if engine == "docker":
        ranks = ("mpirun", "-n", str(start.processes)) if start.is_parallel else ()
        words, launcher = (*words, *ranks), ()
    program = shlex.join(start.program) or "<program>"
    lines.append(f"{shell_line((*launcher, *words))} {program}")
    return comments(*start.remarks) + "\n".join([*lines, ""])


def _filename(start: Start, kind: str) -> str:
    if kind == "edf":
        return edf_name(start.reference)
    return f"{start.title}.lua" if kind == "module" else f"{start.title}.sh"
