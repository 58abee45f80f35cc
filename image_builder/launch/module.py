"""Writes an Lmod module whose commands are programs of an image. Pure; every value is quoted.

Its form: https://lmod.readthedocs.io/en/latest/050_lua_modulefiles.html
"""

from __future__ import annotations

import hashlib
import re

from image_builder.docker import label_names
from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.launch.commands import engine_words, shell_line
from image_builder.launch.facts import runs_sifs
from image_builder.launch.start import Start, comments

ANY_PROGRAM = "cic-exec"
"""The wrapper that runs the program that it is given."""
_COMMAND = re.compile(r"[A-Za-z_][A-Za-z0-9_.+-]{0,99}")


def lmod_module(start: Start) -> str:
    """Return the module file for an image's programs, and `cic-exec`, which runs any.

    They are those that `start` names, or else all that were added to the image's distribution.
    The SIF is looked for in the module file's folder. Raises `InvalidRequest` for a program that
    cannot be the name of a command.
    """
    variable = f"CIC_IMAGE_{hashlib.sha256(start.title.encode()).hexdigest()[:8].upper()}"
    lines = [
        comments(
            f"Programs of {start.file or start.reference} for {start.machine.name}",
            *start.remarks,
            mark="--",
        ).rstrip(),
        f"whatis({_lua(f'Name: {start.title}')})",
        f"whatis({_lua('Description: programs of a container image')})",
        *[f"depends_on({_lua(name)})" for name in _modules(start)],
        f"setenv({_lua(variable)}, {_image(start)})",
        *[f"setenv({_lua(name)}, {_lua(value)})" for name, value in start.environment.items()],
        *[_wrapper(start, variable, name) for name in (ANY_PROGRAM, *_programs(start))],
    ]
    return "\n".join([*lines, ""])


def _modules(start: Start) -> tuple[str, ...]:
    return start.machine.fabric.modules if start.machine.fabric else ()


def _image(start: Start) -> str:
    """Return the Lua expression for what the engine calls the image."""
    if not runs_sifs(start.machine.engine):
        return _lua(start.reference)
    return f'pathJoin(myFileName():match("^(.*)/") or ".", {_lua(start.file)})'


def _wrapper(start: Start, variable: str, name: str) -> str:
    """Return the line that makes a shell function, for Bourne's shells and for C shells."""
    place = "CIC_IMAGE_PLACE"
    words = engine_words(start.image, start.machine, start.machine.engine, place)
    line = shell_line(words).replace(place, f'"${variable}"')
    if name != ANY_PROGRAM:
        line += f" {name}"
    bourne, c_shell = _lua(f'{line} "$@"'), _lua(f"{line} $*")
    return f"set_shell_function({_lua(name)}, {bourne}, {c_shell})"


def _programs(start: Start) -> tuple[str, ...]:
    if start.program:
        return tuple(map(_name, start.program))
    added = start.image.get(label_names.PROGRAMS, "").split(",")
    return tuple(name for name in added if _COMMAND.fullmatch(name))


def _name(program: str) -> str:
    if not _COMMAND.fullmatch(program):
        hint = "write names of programs such as python3, with spaces between them"
        problem = f"{program[:60]!r} cannot be the name of a command"
        raise InvalidRequest([FieldProblem("program", problem, hint)])
    return program


def _lua(text: str) -> str:
    """Return a Lua string: what is not plain ASCII becomes its bytes."""
    plain = {ord(char) for char in map(chr, range(32, 127))} - {ord('"'), ord("\\")}
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03d}" for b in text.encode()) + '"'
