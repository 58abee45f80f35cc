"""Reads with pyelftools what a program or library needs and offers. Pure.

The file is a stranger's. Whatever it says of itself, only so many reads and bytes are spent on it.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection
from elftools.elf.segments import NoteSegment

from image_builder.spack.versions import numbers

MAX_READS = 40_000
MAX_READ_BYTES = 16 * 1024**2
_VERSION = re.compile(r"(GLIBC|GLIBCXX)_(\d{1,4}(?:\.\d{1,4}){0,3})")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.+@-]{1,100}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElfFile:
    """Holds a file's own name and the libraries it needs.

    `needs` and `offers` are the highest symbol versions, by `GLIBC` and `GLIBCXX`; `kernel` is the
    oldest Linux that the file says it runs with.
    """

    soname: str | None = None
    needed: tuple[str, ...] = ()
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    offers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kernel: str | None = None


def read_elf(file: IO[bytes]) -> ElfFile | None:
    """Return what a seekable file says, or None for one that makes no sense or costs too much."""
    try:
        budget: Any = _Budget(file)
        return _read(ELFFile(budget))
    except (ELFError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    except (struct.error, OverflowError, MemoryError, RecursionError, AssertionError):
        return None


class _TooMuch(OSError):
    """More was read than any sound file needs."""


class _Budget:
    """Lets pyelftools read so much of a file and no more.

    Every step of its loops reads, so a table that leads back to itself ends here, too.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._reads, self._bytes = file, MAX_READS, MAX_READ_BYTES

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(self._bytes + 1 if count < 0 else min(count, self._bytes + 1))
        self._reads -= 1
        self._bytes -= len(data)
        if self._reads < 0 or self._bytes < 0:
            raise _TooMuch
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _read(elf: ELFFile) -> ElfFile:
    soname: str | None = None
    needed: list[str] = []
    needs: dict[str, list[str]] = {}
    offers: dict[str, list[str]] = {}
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            tags: Iterator[Any] = section.iter_tags()
            for tag in tags:
                if tag.entry.d_tag == "DT_NEEDED":
                    needed.append(tag.needed)
                elif tag.entry.d_tag == "DT_SONAME":
                    soname = tag.soname
        elif isinstance(section, GNUVerNeedSection):
            _sort_in(needs, (one.name for _, every in section.iter_versions() for one in every))
        elif isinstance(section, GNUVerDefSection):
            _sort_in(offers, (one.name for _, every in section.iter_versions() for one in every))
    return ElfFile(
        soname=soname if soname and _PLAIN_NAME.fullmatch(soname) else None,
        needed=tuple(name for name in needed if _PLAIN_NAME.fullmatch(name)),
        needs=_highest_of_each(needs),
        offers=_highest_of_each(offers),
        kernel=_kernel(elf),
    )


def _sort_in(found: dict[str, list[str]], names: Iterator[str]) -> None:
    for name in names:
        if match := _VERSION.fullmatch(name):
            found.setdefault(match[1], []).append(match[2])


def _highest_of_each(found: Mapping[str, list[str]]) -> dict[str, str]:
    return {family: max(versions, key=numbers) for family, versions in found.items()}


def _kernel(elf: Any) -> str | None:
    """Return the oldest kernel that the file's ABI note names, such as 3.2.0."""
    for segment in elf.iter_segments():
        if not isinstance(segment, NoteSegment):
            continue
        for note in segment.iter_notes():
            if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_ABI_TAG":
                tag = note["n_desc"]
                if tag["abi_os"] == "ELF_NOTE_OS_LINUX":
                    return f"{tag['abi_major']}.{tag['abi_minor']}.{tag['abi_tiny']}"
    return None
