"""Finds a second MPI, from Debian or as a wheel, in addition to the machine's. Pure."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from packaging.utils import canonicalize_name

from image_builder.data import facts_of
from image_builder.request.mpi_gpu import Mpi
from image_builder.sources.description import Description
from image_builder.sources.requirements import Requirements

_MPI_WORD = re.compile(r"(?:lib)?(?:open|cray)?(?:mpi|mpich|mvapich)[0-9.]*(?:t64)?\Z")

_NO_PROGRAM = re.compile(r"-(?:common|data|docs?|examples|headers-dev)\Z")


def other_mpi_warnings(
    description: Description, requirements: Requirements | None, mpi: Mpi | None
) -> Iterator[str]:
    """Yield a warning for each entry that installs an MPI which is not the machine's."""
    if mpi is None:
        return
    file = description.file
    for at, entry in enumerate(description.apt):
        name = re.split("[:=]", entry)[0]
        if brings_mpi(name):
            yield _warning(f"{file}, line {description.line('apt', at)}", name, mpi)
    for at, entry in enumerate(description.pip or ()):
        if (name := _normalized(entry)) in _facts()["pip"]:
            yield _warning(f"{file}, line {description.line('pip', at)}", f"the wheel {name}", mpi)
    for where, line, name in requirements.packages if requirements is not None else ():
        if name in _facts()["pip"]:
            yield _warning(f"{where}, line {line}", f"the wheel {name}", mpi)


def brings_mpi(package: str) -> bool:
    """Return whether a Debian package is an MPI, or needs one."""
    if _NO_PROGRAM.search(package) or _is_one_of("without_mpi", package):
        return False
    return any(map(_MPI_WORD.match, package.split("-"))) or _is_one_of("apt", package)


def _is_one_of(kind: str, package: str) -> bool:
    return any(fnmatch.fnmatchcase(package, pattern) for pattern in _facts()[kind])


def _warning(where: str, what: str, mpi: Mpi) -> str:
    return (
        f"{where}: {what} brings a second MPI; what uses it does not use {mpi.spec}. "
        f"Name what is needed below spack: specs, where {mpi.name} is the only one."
    )


def _normalized(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return canonicalize_name(name.group()) if name else ""


@functools.cache
def _facts() -> Mapping[str, Iterable[Any]]:
    loaded: dict[str, list[str]] = facts_of("other_mpi")
    return {key: frozenset(names) for key, names in loaded.items()}
