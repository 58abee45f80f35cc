"""Make an archive of this machine's own programs and libraries.

They are files as images have them, and no network is needed.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SOURCES = (
    "/usr/bin",
    "/usr/sbin",
    "/usr/libexec",
    "/usr/lib",
    "/usr/share",
    "/usr/include",
    "/opt",
)
"""Where the files come from, until there are enough."""


def write_archive(target: IO[bytes], size_bytes: int) -> None:
    """Write a tar of about `size_bytes` of files."""
    written = 0
    with tarfile.open(fileobj=target, mode="w|") as archive:
        for member, path in _members():
            if written > size_bytes:
                break
            if member.isreg():
                with path.open("rb") as file:
                    archive.addfile(member, file)
            else:
                archive.addfile(member)
            written += member.size


def _members() -> Iterator[tuple[tarfile.TarInfo, Path]]:
    """Folders, files and links of this machine, folders first, as they are when they are looked at."""
    made: set[str] = set()
    with tarfile.open(os.devnull, "w") as archive:  # only for its gettarinfo
        for parent, folders, names in (step for source in SOURCES for step in os.walk(source)):
            folders.sort()
            for name in _parents(parent, made):
                yield archive.gettarinfo(name), Path(name)
            links = [name for name in folders if Path(parent, name).is_symlink()]
            for name in sorted(names) + links:
                path = Path(parent, name)
                with contextlib.suppress(OSError):
                    member = archive.gettarinfo(str(path))
                    if member.islnk():
                        member = _unlinked(member, path)
                    if member.issym() or (member.isreg() and os.access(path, os.R_OK)):
                        yield member, path


def _unlinked(member: tarfile.TarInfo, path: Path) -> tarfile.TarInfo:
    member.type, member.linkname, member.size = tarfile.REGTYPE, "", path.stat().st_size
    return member


def _parents(folder: str, made: set[str]) -> Iterator[str]:
    for path in (*reversed(Path(folder).parents), Path(folder)):
        if path != Path("/") and str(path) not in made:
            made.add(str(path))
            yield str(path)
