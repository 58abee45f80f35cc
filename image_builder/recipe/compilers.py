"""Says which compiler can make code for which target, and which host can run it.

Pure but for the host's own CPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import archspec.cpu

from image_builder.errors import ErrorCode, UserError
from image_builder.request.cpu_targets import Target

_APT_COMPILER = re.compile(r"(gcc|clang)-(\d+(?:\.\d+)?)(?::.*)?(?:=.*)?\Z")
_NEWEST_MINOR = ".99"
"""What stands for the unknown rest of a version such as `gcc@12`: the newest that there may be."""


def available(base: Mapping[str, str], apt: Iterable[str]) -> list[tuple[str, str]]:
    """Return the compilers of a base image and of the Debian packages, as (name, version)."""
    packaged = [match.groups() for match in map(_APT_COMPILER.match, apt) if match]
    return [*base.items(), *((name, f"{version}{_NEWEST_MINOR}") for name, version in packaged)]


def named(compiler_specs: Iterable[str]) -> list[tuple[str, str]]:
    """Return the compilers that a workflow names (`gcc@8`); only those with a plain version."""
    matches = [
        re.fullmatch(r"%?(gcc|clang|llvm)@=?(\d+)(\.[\d.]*\d)?", text) for text in compiler_specs
    ]
    return [
        ("clang" if match[1] == "llvm" else match[1], match[2] + (match[3] or _NEWEST_MINOR))
        for match in matches
        if match
    ]


def can_make(target: str, compiler: str, version: str) -> bool:
    """Return whether a compiler can make code for an archspec target.

    One that archspec does not know is taken to be able to.
    """
    cpu = archspec.cpu.TARGETS[target]
    if compiler not in cpu.compilers:
        return True
    try:
        return bool(cpu.optimization_flags(compiler, version))
    except archspec.cpu.UnsupportedMicroarchitecture:
        return False


def nearest_makeable(target: str, compilers: Iterable[tuple[str, str]]) -> str:
    """Return the most capable ancestor of `target`, or itself, that a compiler makes code for."""
    known = list(compilers)
    cpu = archspec.cpu.TARGETS[target]
    ancestors = sorted(
        cpu.ancestors,
        key=lambda ancestor: (len(ancestor.ancestors), len(ancestor.features)),
        reverse=True,
    )
    for candidate in [cpu, *ancestors]:
        if any(can_make(candidate.name, name, version) for name, version in known):
            return str(candidate.name)
    return str(cpu.family.name)


def check_target(target: Target, compilers: list[tuple[str, str]]) -> None:
    """Refuse a target that none of the compilers can make; without compilers nothing is refused.

    Raises `UserError` (`COMPILER_TOO_OLD`).
    """
    if not compilers or any(can_make(target.name, name, version) for name, version in compilers):
        return
    shown = ", ".join(
        f"{name} {version.removesuffix(_NEWEST_MINOR)}" for name, version in compilers
    )
    fitting = nearest_makeable(target.name, compilers)
    raise UserError(
        f"The image's compilers ({shown}) cannot make code for {target.name}.",
        hint=f'Ask for "architecture": "{fitting}", the nearest that they can make, or choose a base '
        "image with a newer compiler.",
        code=ErrorCode.COMPILER_TOO_OLD,
    )
