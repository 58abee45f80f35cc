"""Reads which machine a program or library is for from the bytes of its ELF header. Pure."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator

HEADER_BYTES = 64
"""As much of a file's beginning as `read_header` needs."""

_EXECUTABLE, _SHARED = 2, 3
_NAMES = {
    2: "sparc",
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    190: "cuda",
    224: "amdgpu",
    243: "riscv",
    258: "loongarch",
}
_PLATFORMS = {
    "linux/amd64": ("x86_64", 64, "little"),
    "linux/arm64": ("aarch64", 64, "little"),
    "linux/ppc64le": ("ppc64", 64, "little"),
    "linux/riscv64": ("riscv", 64, "little"),
}
_GPU = frozenset({"cuda", "amdgpu"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """Holds what an ELF header says of the file.

    That is the `machine` (`x86_64`), its word size and byte order, and whether the file can run.
    """

    machine: str
    bits: int
    byte_order: str
    runs: bool
    """A program or shared library; an object file (`.o`) does not run."""

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.byte_order}-endian {self.machine}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misfit:
    """Names a file that the platform cannot run."""

    path: str
    header: Header


def read_header(start: bytes) -> Header | None:
    """Return the header at the beginning of a file, or None for a broken one or no ELF file."""
    if (
        len(start) < 20
        or start[:4] != b"\x7fELF"
        or start[4] not in (1, 2)
        or start[5] not in (1, 2)
    ):
        return None
    little = start[5] == 1
    kind, machine = struct.unpack_from("<HH" if little else ">HH", start, 16)
    return Header(
        machine=_NAMES.get(machine, f"machine {machine}"),
        bits=32 * start[4],
        byte_order="little" if little else "big",
        runs=kind in (_EXECUTABLE, _SHARED),
    )


def misfits(files: Iterable[tuple[str, bytes]], platform: str) -> Iterator[Misfit]:
    """Yield the files that `platform` cannot run; GPU code is passed over.

    `files` are given as `(path, first bytes)`.
    """
    wanted = _PLATFORMS[platform]
    for path, start in files:
        header = read_header(start)
        if (
            header is not None
            and header.runs
            and header.machine not in _GPU
            and (header.machine, header.bits, header.byte_order) != wanted
        ):
            yield Misfit(path=path, header=header)
