"""Decides which CUDA takes which compilers, as the base image's Spack knows it. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from image_builder.request.mpi_gpu import Gpu
from image_builder.spack.compiler_names import gcc_packages
from image_builder.spack.knowledge import SpackKnowledge, newest_of
from image_builder.spack.spec import target_allows, version_satisfies
from image_builder.spack.version_ranges import overlap

ALLOW = "allow-unsupported-compilers"
"""CUDA's variant that lifts the limits of compilers."""
_NEWEST_GCC = 20
_OLDEST_GCC = 4

Compiler = tuple[str, str]
"""A name and a version: `("gcc", "12.2.0")`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompilerGap:
    """Describes a CUDA that takes none of an image's compilers.

    `newest_gcc` is the major of GCC that it takes, and `cuda` the oldest major of CUDA that takes
    one of the image's; None if there is none. `can_be_allowed` says that CUDA can be built all the
    same.
    """

    cuda_version: str
    newest_gcc: int | None
    cuda: str | None
    can_be_allowed: bool

    def explained(self, compilers: str, packaged: Sequence[int] | None) -> str:
        """Return what does not match, and what to do about it.

        `packaged` are the majors of GCC that the image can get by apt; None: they are not known.
        """
        short = ".".join(self.cuda_version.split(".")[:2])
        takes = f"takes gcc up to {self.newest_gcc}" if self.newest_gcc else "takes none of them"
        newest = self.newest_gcc or 0
        fitting = [newest] if packaged is None else [one for one in packaged if one <= newest]
        ways = [f"add {gcc_packages(max(fitting))} under apt"] if newest and fitting else []
        ways += [f"ask for cuda@{self.cuda}"] if self.cuda else []
        advice = " or ".join(ways)
        return f"CUDA {short} {takes}; the image has {compilers}: {advice or 'ask for no version'}."


def compiler_gap(
    gpu: Gpu, compilers: Sequence[Compiler], target: str, knows: SpackKnowledge
) -> CompilerGap | None:
    """Return why the requested CUDA takes none of the compilers, or None if it takes one.

    If gcc is among them, it alone counts: the others have no Fortran.
    """
    package = knows.package("cuda")
    judged = [one for one in compilers if one[0] == "gcc"] or list(compilers)
    if gpu.name != "cuda" or package is None or not judged:
        return None
    needed = dict(knows.cuda_archs).get(gpu.arch or "", "")
    versions = [version for version in package.versions if overlap(needed, version)]
    asked = [version for version in versions if _lies_in(version, gpu.version)]
    if not asked or any(_takes_one(version, judged, target, knows) for version in asked):
        return None
    newest = newest_of(asked) or asked[0]
    others = [one for one in versions if _takes_one(one, judged, target, knows)]
    return CompilerGap(
        cuda_version=newest,
        newest_gcc=_newest_gcc(newest, target, knows),
        cuda=_oldest_major(others),
        can_be_allowed=ALLOW in package.variants and ALLOW not in gpu.spec,
    )


def _lies_in(version: str, wanted: str) -> bool:
    return not wanted or version_satisfies(version, wanted)


def _takes_one(
    cuda: str, compilers: Iterable[Compiler], target: str, knows: SpackKnowledge
) -> bool:
    return any(_takes(cuda, compiler, target, knows) for compiler in compilers)


def _takes(cuda: str, compiler: Compiler, target: str, knows: SpackKnowledge) -> bool:
    name, version = compiler
    return not any(
        conflict.compiler == name
        and (not conflict.targets or target_allows(conflict.targets, target))
        and overlap(conflict.cuda_versions, cuda)
        and _is_within(version, conflict.compiler_versions)
        for conflict in knows.cuda_compilers
    )


def _is_within(version: str, ranges: str) -> bool:
    return any(part == ":" or not part for part in ranges.split(",")) or version_satisfies(
        version, ranges
    )


def _newest_gcc(cuda: str, target: str, knows: SpackKnowledge) -> int | None:
    majors = range(_NEWEST_GCC, _OLDEST_GCC, -1)
    return next(
        (major for major in majors if _takes(cuda, ("gcc", f"{major}.99"), target, knows)), None
    )


def _oldest_major(versions: Iterable[str]) -> str | None:
    """Return the lowest major that a range of versions begins with and that stays within it."""
    majors = sorted({int(version.split(".")[0]) for version in versions if version[:1].isdigit()})
    return str(majors[0]) if majors else None
