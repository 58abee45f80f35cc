"""Says what a file of an image is by its path, from the data file. Pure."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from image_builder.data import facts_of

PLUGIN = "plugin"


def elf_facts() -> Mapping[str, Any]:
    """Return the data file: `distribution`, `files`, `mpi`, `pmi`, `networks`, `cuda`."""
    return facts_of("elf_facts")


@functools.cache
def pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of the data file for names."""
    return re.compile(text)


@functools.cache
def bytes_pattern(text: str) -> re.Pattern[bytes]:
    """Return a pattern of the data file for the bytes of a file."""
    return re.compile(text.encode("ascii"))


def kind_of(path: str) -> str | None:
    """Return which of `files` a file is, `plugin` for a plug-in of these, or None."""
    name = posixpath.basename(path)
    if not name.startswith(("lib", "mca_")):
        return None
    for kind, text in elf_facts()["files"].items():
        if pattern(text).fullmatch(name):
            return str(kind)
    return PLUGIN if is_plugin(name) else None


def is_plugin(name: str) -> bool:
    """Return whether a file's name is that of a plug-in which tells something by its name."""
    networks = (one["plugins"] for one in elf_facts()["networks"].values())
    return any(pattern(text).match(name) for text in (*networks, *elf_facts()["pmi"]["plugins"]))


def is_added(path: str) -> bool:
    """Return whether a file is none of the distribution's own.

    What pip installs below the distribution's `/usr/lib` is not, either.
    """
    if "/dist-packages/" in path or "/site-packages/" in path:
        return True
    return not path.startswith(tuple(elf_facts()["distribution"]))


def added_program(path: str) -> str | None:
    """Return the name of a program that was added to the distribution, if a path is of one."""
    programs = elf_facts()["programs"]
    found = pattern(programs["added"]).fullmatch(path)
    if found is None or pattern(programs["not_commands"]).fullmatch(found[2]):
        return None
    return found[2]


def distributions_program(path: str) -> str | None:
    """Return the name of one of the distribution's programs, if a path is of one."""
    found = pattern(elf_facts()["programs"]["distributions"]).fullmatch(path)
    return found[1] if found else None


def is_of_an_mpi(path: str) -> bool:
    """Return whether a file is a part of an MPI, by its name."""
    return pattern(elf_facts()["mpi"]["own"]).fullmatch(posixpath.basename(path)) is not None


def is_mpi_library(soname: str) -> bool:
    return pattern(elf_facts()["files"]["mpi"]).fullmatch(soname) is not None
