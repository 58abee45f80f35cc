"""Which compiler can make code for which target, and which host can run it. Pure but for the host's
own CPU.
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
    """The compilers of a base image together with those that Debian packages bring, as (name,
    version).
    """
    brought = [match.groups() for match in map(_APT_COMPILER.match, apt) if match]
    return [*base.items(), *((name, f"{version}{_NEWEST_MINOR}") for name, version in brought)]


def named(compiler_specs: Iterable[str]) -> list[tuple[str, str]]:
    """The compilers that a workflow names (`gcc@8`); those without a plain version are left out."""
    found = [
        re.fullmatch(r"%?(gcc|clang|llvm)@=?(\d+)(\.[\d.]*\d)?", text) for text in compiler_specs
    ]
    return [
        ("clang" if match[1] == "llvm" else match[1], match[2] + (match[3] or _NEWEST_MINOR))
        for match in found
        if match
    ]


def can_make(target: str, compiler: str, version: str) -> bool:
    """Whether a compiler can make code for an archspec target; one that archspec does not know gets
    the benefit.
    """
    cpu = archspec.cpu.TARGETS[target]
    if compiler not in cpu.compilers:
        return True
    try:
        return bool(cpu.optimization_flags(compiler, version))
    except archspec.cpu.UnsupportedMicroarchitecture:
        return False


def nearest_makeable(target: str, compilers: Iterable[tuple[str, str]]) -> str:
    """The most capable ancestor of `target`, or itself, that one of the compilers can make."""
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
    """Raises `UserError` (`COMPILER_TOO_OLD`) when there are compilers and none can make `target`."""
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
