"""Finds for which GPUs a file holds code, in one pass over its bytes. Pure.

CUDA's compiler puts code into `fat binaries`: a header, and entries that say whether they are PTX or
machine code, for which architecture, and how long they are. Their form is not published; it is taken
from what public tools read, such as https://github.com/n-eiling/cuda-fatbin-decompression. Clang
names the architecture of each part of an AMD bundle:
https://clang.llvm.org/docs/ClangOffloadBundler.html.
"""

from __future__ import annotations

import dataclasses
import re
import struct

MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<4sHHQ")
"""Magic number, version, length of the header, length of all entries behind it."""
ENTRY = struct.Struct("<HHIQIIHHI")
"""Kind, …, length of the entry's header, length of its body, …, architecture."""
PTX, MACHINE_CODE = 1, 2
MAX_ENTRIES = 100_000
_ARCHITECTURES = range(20, 1000)
_LENGTHS_OF_HEADERS = range(ENTRY.size, 4097)
_AMD = re.compile(rb"amdgcn-amd-amdhsa--(gfx[0-9a-f]{3,8})")
_OVERLAP = 128
"""Bytes that are looked at again with the next chunk; more than any header has."""


@dataclasses.dataclass
class GpuCode:
    """Gathers the architectures that a file holds code for, as its bytes are fed in order."""

    machine_code: set[int] = dataclasses.field(default_factory=set)
    ptx: set[int] = dataclasses.field(default_factory=set)
    amd: set[str] = dataclasses.field(default_factory=set)
    _tail: bytes = b""
    _tail_at: int = 0
    """Where `_tail` begins in the file; so are the next two counted."""
    _searched_to: int = 0
    _next_entry: int | None = None
    _end: int = 0
    _entries: int = 0

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the file."""
        data = self._tail + chunk
        self.amd.update(name.decode() for name in _AMD.findall(data))
        while self._entries < MAX_ENTRIES and self._step(data):
            pass
        self._tail_at += max(len(data) - _OVERLAP, 0)
        self._tail = data[-_OVERLAP:]

    def _step(self, data: bytes) -> bool:
        """Read the next entry or find the next header; return False when more bytes are needed."""
        if self._next_entry is None:
            return self._find_header(data)
        begin = self._next_entry - self._tail_at
        if begin + ENTRY.size > len(data):
            return False
        self._read_entry(*ENTRY.unpack_from(data, begin))
        return True

    def _find_header(self, data: bytes) -> bool:
        begin = data.find(MAGIC, max(self._searched_to - self._tail_at, 0))
        if begin < 0 or begin + HEADER.size > len(data):
            seen = len(data) - HEADER.size if begin < 0 else begin
            self._searched_to = max(self._searched_to, self._tail_at + seen)
            return False
        _, version, length, size = HEADER.unpack_from(data, begin)
        self._searched_to = self._tail_at + begin + len(MAGIC)
        if version == 1 and HEADER.size <= length <= 64 and size:
            self._next_entry = self._tail_at + begin + length
            self._end = self._next_entry + size
        return True

    def _read_entry(self, kind: int, _: int, header: int, size: int, *rest: int) -> None:
        assert self._next_entry is not None
        self._entries += 1
        architecture = rest[-1]
        if header not in _LENGTHS_OF_HEADERS:
            self._next_entry = None
            return
        if architecture in _ARCHITECTURES and kind in (PTX, MACHINE_CODE):
            (self.ptx if kind == PTX else self.machine_code).add(architecture)
        self._searched_to = self._next_entry + header + size
        is_last = self._searched_to + ENTRY.size > self._end
        self._next_entry = None if is_last else self._searched_to
