"""Reads the headers of a stranger's tar archive: POSIX, GNU and what git writes. Pure but for reads.

Python's own `tarfile` takes what it does not understand for the archive's end, reads headers of any
size into memory, and searches them with patterns that take quadratic time. This reader takes linear
time and little memory, and refuses what it does not know.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import IO

from image_builder.sources.git.trees import BadTree, Budget, Limits, printable

BLOCK = 512
MAX_EXTENSION_BYTES = 16 * 1024
"""The most that a long name, or what POSIX's extended headers say of a file, may take."""
_AGAIN = "pack it again with tar"
_ROOM_FOR_LENGTH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """Describes a file, folder or symbolic link; `target` is where a link points.

    The content is the `size` bytes from `offset` on.
    """

    path: str
    size: int
    offset: int
    is_folder: bool = False
    is_executable: bool = False
    target: str | None = None


@dataclasses.dataclass
class _Names:
    """Holds what extended headers say of the next member."""

    path: bytes | None = None
    target: bytes | None = None


def members(
    archive: IO[bytes], limits: Limits, counts: Callable[[str], bool] = lambda _: True
) -> Iterator[Member]:
    """Yield what an archive, a file that can seek, has; its contents are skipped.

    The limits are those of the members whose path `counts`; of others there are not many more.
    Raises `BadTree` for what is no archive, ends early, passes the limits, or has a member that no
    step may have: hard links, devices, sparse files.
    """
    size_bytes = archive.seek(0, os.SEEK_END)
    budget, others = Budget(limits), Budget(Limits(max_files=10 * limits.max_files))
    extensions = 3 * limits.max_files
    position, names = 0, _Names()
    while True:
        archive.seek(position)
        header = archive.read(BLOCK)
        if len(header) < BLOCK:
            raise BadTree("", "ends before its end" if position else "is no tar archive", _AGAIN)
        if not any(header):
            return
        if not _has_checksum(header):
            raise BadTree("", "is damaged" if position else "is no tar archive", _AGAIN)
        kind, size, offset = header[156:157], _size(header), position + BLOCK
        position = offset + -(-size // BLOCK) * BLOCK
        if position > size_bytes:
            raise BadTree("", "ends before its end", _AGAIN)
        if kind in b"xgLK":
            extensions -= 1
            _read_extension(archive, kind, size, names, is_too_much=extensions < 0)
            continue
        member = _member(header, kind, size, offset, names)
        (budget if counts(member.path) else others).take(member.path, size)
        names = _Names()
        yield member


def _member(header: bytes, kind: bytes, size: int, offset: int, names: _Names) -> Member:
    raw = _text(header[:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        raw = prefix + b"/" + raw
    path = os.fsdecode(raw if names.path is None else names.path)
    if kind == b"1":
        raise BadTree(printable(path), "is a hard link", "pack it with tar --hard-dereference")
    if kind not in (b"0", b"\0", b"7", b"2", b"5"):
        raise BadTree(printable(path), "is neither a file, a folder nor a link", "leave it out")
    is_folder = kind == b"5" or (kind == b"\0" and path.endswith("/"))
    if size and (kind == b"2" or is_folder):
        raise BadTree(printable(path), "has content, and is no file", _AGAIN)
    linked = _text(header[157:257]) if names.target is None else names.target
    return Member(
        path=path,
        size=size,
        offset=offset,
        is_folder=is_folder,
        is_executable=bool(_number(header[100:108]) & 0o100),
        target=os.fsdecode(linked) if kind == b"2" else None,
    )


def _read_extension(
    archive: IO[bytes], kind: bytes, size: int, names: _Names, *, is_too_much: bool
) -> None:
    """Read a header that says more of the next member: a long name, or POSIX's records."""
    if size > MAX_EXTENSION_BYTES or is_too_much:
        raise BadTree("", "has names that are too long", "use shorter names")
    content = archive.read(size)
    if kind == b"L":
        names.path = _text(content)
    elif kind == b"K":
        names.target = _text(content)
    else:
        for key, value in _records(content):
            if key == b"size" or key.startswith(b"GNU.sparse"):
                raise BadTree("", "has a sparse file, or one of 8 GiB and more", "leave it out")
            if kind == b"x" and key == b"path":
                names.path = value
            if kind == b"x" and key == b"linkpath":
                names.target = value


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of `<length> <key>=<value>` lines, whose length counts itself."""
    position = 0
    while position < len(content):
        blank = content.find(b" ", position, position + _ROOM_FOR_LENGTH)
        digits = content[position:blank] if blank > position else b""
        end = position + int(digits) if digits.isdigit() else 0
        record = content[blank + 1 : end]
        if not blank < end <= len(content) or not record.endswith(b"\n") or b"=" not in record:
            raise BadTree("", "is damaged", _AGAIN)
        key, _, value = record[:-1].partition(b"=")
        yield key, value
        position = end


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Return a number in octal digits. Raises `BadTree`, also for GNU's form of huge numbers."""
    digits = field.strip(b" \0")
    if digits and not (digits.isdigit() and set(digits) <= set(b"01234567")):
        raise BadTree("", "is damaged, or has a file of 8 GiB and more", _AGAIN)
    return int(digits or b"0", 8)


def _size(header: bytes) -> int:
    return _number(header[124:136])


def _has_checksum(header: bytes) -> bool:
    digits = header[148:156].strip(b" \0")
    expected = int(digits, 8) if digits and set(digits) <= set(b"01234567") else -1
    return sum(header) - sum(header[148:156]) + 8 * ord(" ") == expected
