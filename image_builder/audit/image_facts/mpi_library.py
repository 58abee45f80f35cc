"""Says which MPIs are in an image, and how their ranks find each other. Pure."""

from __future__ import annotations

import dataclasses
import os.path
import posixpath
from collections.abc import Iterator, Sequence

from image_builder.audit.image_facts.elf_file import ElfFile
from image_builder.audit.image_facts.facts import MpiLibrary
from image_builder.audit.image_facts.naming import bytes_pattern, elf_facts, pattern
from image_builder.spack.versions import numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library:
    """Holds what one library told: `name` and `version` of its MPI, PMIx or C library, and the ways to meet."""

    path: str
    kind: str
    tables: ElfFile
    name: str | None = None
    version: str | None = None
    pmi: frozenset[str] = frozenset()


def library(path: str, kind: str, tables: ElfFile, text: bytes) -> Library:
    """Return what a library's tables and its bytes say; `kind` is one of the data file's `files`."""
    pmi = elf_facts()["pmi"]
    spoken = {pmi["needed"].get(name) for name in tables.needed}
    name = version = None
    if kind == "mpi":
        name, version = _release(text)
        if name != "openmpi" and bytes_pattern(pmi["own_client"]).search(text):
            spoken.add("pmi2")
    elif kind == "pal":
        spoken |= {how for one, how in pmi["texts"].items() if bytes_pattern(one).search(text)}
        version = _highest(bytes_pattern(pmi["embedded"]).findall(text))
    elif kind == "libc":
        version = _highest(bytes_pattern(elf_facts()["glibc"]).findall(text))
    elif kind == "pmix":
        version = _highest(bytes_pattern(pmi["release"]).findall(text))
    return Library(
        path=path,
        kind=kind,
        tables=tables,
        name=name,
        version=version,
        pmi=frozenset(how for how in spoken if how),
    )


def mpis(libraries: Sequence[Library], plugins: Sequence[str]) -> tuple[MpiLibrary, ...]:
    """Return the MPIs that an image has; libraries of one release in one folder are one MPI."""
    groups: dict[tuple[str, str | None, str], list[Library]] = {}
    for one in libraries:
        if one.kind == "mpi" and one.name is not None:
            folder = posixpath.dirname(one.path)
            groups.setdefault((one.name, one.version, folder), []).append(one)
    return tuple(
        MpiLibrary(
            name=name,
            version=version,
            path=group[0].path,
            sonames=tuple(sorted({one.tables.soname for one in group if one.tables.soname})),
            pmi=tuple(sorted(_spoken(name, group, libraries, plugins))),
        )
        for (name, version, _), group in sorted(groups.items(), key=str)
    )


def pmix_release(libraries: Sequence[Library]) -> str | None:
    """Return the release of the PMIx in an image, or the major one that Open MPI 4 has inside."""
    found = {
        kind: [one.version for one in libraries if one.kind == kind and one.version]
        for kind in ("pmix", "pal")
    }
    return max(found["pmix"] or found["pal"], key=numbers, default=None)


def _spoken(
    name: str, group: Sequence[Library], libraries: Sequence[Library], plugins: Sequence[str]
) -> Iterator[str]:
    spoken = {how for one in group for how in one.pmi}
    if name == "openmpi":
        near = [one for one in libraries if one.kind == "pal" and _are_near(one, group)]
        spoken |= {how for one in near for how in one.pmi} | set(_by_plugins(group, plugins))
    yield from spoken


def _are_near(one: Library, group: Sequence[Library]) -> bool:
    return posixpath.dirname(one.path) == posixpath.dirname(group[0].path)


def _by_plugins(group: Sequence[Library], plugins: Sequence[str]) -> Iterator[str]:
    """Yield what plug-ins below the MPI's own folder speak."""
    folder = posixpath.dirname(group[0].path)
    for path in plugins:
        if os.path.commonpath((folder, path)) == folder:
            for text, how in elf_facts()["pmi"]["plugins"].items():
                if pattern(text).match(posixpath.basename(path)):
                    yield how


def _release(text: bytes) -> tuple[str | None, str | None]:
    """Return the name and the release of the MPI that a library is of."""
    for kind in elf_facts()["mpi"]["kinds"]:
        if bytes_pattern(kind["text"]).search(text):
            return kind["name"], _highest(bytes_pattern(kind["version"]).findall(text))
    return None, None


def _highest(found: Sequence[bytes]) -> str | None:
    return max((one.decode("ascii") for one in found), key=numbers, default=None)
