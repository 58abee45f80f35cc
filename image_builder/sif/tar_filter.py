"""Checks an image's files in a tar stream, and writes the stream that goes into squashfs.

    python3 tar_filter.py [--additions FILE] [--time SECONDS] [--newest SECONDS] --report FILE < export.tar

What `docker export` itself puts in is left out, and so is what the image has where Singularity puts its own files. The
members of the additions (a tar file, for which the program waits: it appears by a rename) follow, each unless its name
was there already. The folders into which Docker writes get the time that is given, and what is newer than the newest
time that is given gets that, so that it does not tell when it was built. Without additions, the stream is for
Singularity itself to unpack and write into: links where it writes are refused. The report says what was written.

This is a program of its own, imports nothing of ours, and never has more of the stream in memory than a window.
Whatever it does not know for certain, it refuses: an entry of an unknown type, a name twice, a child before its
folder, a stream without its end. It ends with 0 only after it has seen the end of the archive and nothing but padding
behind it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable

EXIT_UNFIT, EXIT_BROKEN = 3, 4

LEFT_OUT = frozenset(
    {
        b".dockerenv",
        b"dev/console",
        b"dev/pts",
        b"dev/shm",
        b"etc/hostname",
        b"etc/hosts",
        b"etc/mtab",
        b"etc/resolv.conf",
    }
)
"""What `docker export` makes, empties or replaces; the additions restore what the image has there."""

PREPARED = frozenset({b"dev", b"dev/pts", b"dev/shm", b"etc", b"proc", b"sys"})
"""The folders that Docker makes or writes into for a container, so that they have its time."""

METADATA = b".singularity.d"
LAUNCHERS = frozenset({b".run", b".exec", b".test", b".shell", b"singularity", b"environment"})
RESERVED = LAUNCHERS | {METADATA}
"""What Singularity puts in the root: a folder, and links into it.

Of an image's own entries there, folders and plain files stay, as they do with `singularity build`,
and nothing that leads elsewhere.
"""

WRITTEN = frozenset({b"dev", b"etc", b"home", b"proc", b"root", b"sys", b"tmp", b"var", b"var/tmp"})
"""The folders of an image that Singularity makes or writes into (`makeBaseEnv`, 3.0 to 4.3).

It follows links there, out of the image.
"""

BLOCK = 512
WINDOW_BYTES = 1024**2
MAX_EXTENSION_BYTES = 1024**2
END = bytes(BLOCK)

_FILE_TYPES = b"0\0S"
_EMPTY_TYPES = b"123456"
_FOLDER = ord("5")
MAX_SHOWN = 5
_PAX_KEYS = frozenset(
    {
        b"path",
        b"linkpath",
        b"size",
        b"uid",
        b"gid",
        b"uname",
        b"gname",
        b"mtime",
        b"atime",
        b"ctime",
    }
)


class UnsupportedArchive(Exception):
    """The stream is whole, but contains something that no SIF is made of."""


class CorruptArchive(Exception):
    """The stream is cut, or is no tar."""


@dataclasses.dataclass
class Report:
    """Counts what is written.

    `inodes` counts hard links once; `listed_lines` are the lines that listing all paths takes.
    """

    entries: int = 0
    inodes: int = 0
    listed_lines: int = 0
    body_bytes: int = 0
    added: int = 0
    left_out: list[str] = dataclasses.field(default_factory=list)
    set_aside: int = 0
    set_aside_first: list[str] = dataclasses.field(default_factory=list)
    """The first of the image's own entries that are not kept where Singularity has its own."""


@dataclasses.dataclass
class Member:
    """Describes one entry of the archive.

    `body_bytes` includes the padding, `size` does not. `extent` counts all its blocks before the
    body.
    """

    name: bytes
    kind: int
    link: bytes
    extent: int
    body_bytes: int
    size: int = 0


class Window:
    """Holds a part of the input; what is behind `position` may still be sent on or dropped."""

    def __init__(self, source: int, target: int | None) -> None:
        self._source, self._target = source, target
        self._data = bytearray()
        self._kept_from = 0
        self.position = 0

    def need(self, count: int) -> bool:
        """Read until `count` bytes from `position` on are there; return False at an earlier end."""
        while len(self._data) - self.position < count:
            chunk = self.read(WINDOW_BYTES)
            if not chunk:
                return False
            self.flush()
            self._data = self._data[self.position :] + chunk
            self._kept_from = self.position = 0
        return True

    def read(self, count: int) -> bytes:
        """Return the next bytes of the input, none at its end."""
        return os.read(self._source, count)

    def drain(self) -> None:
        """Read to the input's end."""
        while self.read(WINDOW_BYTES):
            pass

    def peek(self, count: int, offset: int = 0) -> bytes:
        begin = self.position + offset
        return bytes(self._data[begin : begin + count])

    def replace(self, data: bytes, offset: int = 0) -> None:
        """Put other bytes in the place of as many of the window."""
        begin = self.position + offset
        self._data[begin : begin + len(data)] = data

    def keep(self, count: int) -> None:
        """Send the next `count` bytes on, which need not be in the window."""
        at_hand = len(self._data) - self.position
        if count <= at_hand:
            self.position += count
            return
        self.position = len(self._data)
        self.flush()
        self._pass_on(count - at_hand, self._target)

    def drop(self, count: int) -> None:
        """Skip the next `count` bytes."""
        self.flush()
        at_hand = len(self._data) - self.position
        self.position += min(count, at_hand)
        if count > at_hand:
            self._pass_on(count - at_hand, None)
        self._kept_from = self.position

    def flush(self) -> None:
        if self._target is not None and self.position > self._kept_from:
            write_all(self._target, memoryview(self._data)[self._kept_from : self.position])
        self._kept_from = self.position

    def at_padding_only(self) -> bool:
        """Return whether nothing but zero bytes is left."""
        rest = bytes(self._data[self.position :])
        while not any(rest):
            rest = self.read(WINDOW_BYTES)
            if not rest:
                return True
        return False

    def _pass_on(self, count: int, target: int | None) -> None:
        """Move bytes that need no check; between pipes, without copying them."""
        self._data, self.position, self._kept_from = bytearray(), 0, 0
        while count:
            if target is not None and count >= WINDOW_BYTES:
                moved = _splice(self._source, target, count)
                if moved:
                    count -= moved
                    continue
            chunk = self.read(min(count, WINDOW_BYTES))
            if not chunk:
                raise CorruptArchive("the stream ends in the middle of a file")
            if target is not None:
                write_all(target, chunk)
            count -= len(chunk)


def write_all(target: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _splice(source: int, target: int, count: int) -> int:
    try:
        return os.splice(source, target, min(count, 16 * WINDOW_BYTES))
    except (OSError, AttributeError):
        return 0


def next_member(window: Window) -> Member | None:
    """Return the member at the window's position, which stays there; None at the archive's end."""
    extent, path, link, size, real_name = 0, None, None, None, None
    while True:
        if not window.need(extent + BLOCK):
            raise CorruptArchive("the stream ends before the archive does")
        header = window.peek(BLOCK, extent)
        if header == END:
            if extent:
                raise CorruptArchive("the archive ends behind an extension header")
            return None
        _check(header)
        kind, own_size = header[156], number(header[124:136])
        extent += BLOCK
        if kind not in b"xLK":
            break
        if own_size > MAX_EXTENSION_BYTES:
            raise UnsupportedArchive("an extension header is larger than 1 MB")
        if not window.need(extent + padded(own_size)):
            raise CorruptArchive("the stream ends in an extension header")
        body = window.peek(own_size, extent)
        extent += padded(own_size)
        if kind == ord("L"):
            path = body.rstrip(b"\0")
        elif kind == ord("K"):
            link = body.rstrip(b"\0")
        else:
            records = pax_records(body)
            path = records.get(b"path", path)
            link = records.get(b"linkpath", link)
            real_name = records.get(b"GNU.sparse.name", real_name)
            size = int(records[b"size"]) if b"size" in records else size
    if size is None:
        size = own_size
    if kind == ord("S"):
        extent += _sparse_blocks(window, extent, header)
    name = real_name or (_name(header) if path is None else path)
    if kind not in _FILE_TYPES and kind not in _EMPTY_TYPES:
        raise UnsupportedArchive(f"{printable(name)} is of an unknown type {chr(kind)!r}")
    if kind in _EMPTY_TYPES and size:
        raise UnsupportedArchive(f"{printable(name)} has a body and should not")
    return Member(
        name=canonical(name),
        kind=kind,
        extent=extent,
        body_bytes=padded(size),
        size=size,
        link=header[157:257].split(b"\0", 1)[0] if link is None else link,
    )


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def number(field: bytes) -> int:
    """Return a numeric field, octal or binary. Raises `CorruptArchive`."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
        if field[0] & 0x40:
            raise CorruptArchive("a header holds a negative size")
        return value
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise CorruptArchive("a header holds a number that is none") from None


def pax_records(body: bytes) -> dict[bytes, bytes]:
    """Return the records of an extension header.

    Raises `UnsupportedArchive` for one whose meaning is not known.
    """
    records = {}
    while body:
        length, space, rest = body.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 3 <= int(length) <= len(body):
            raise CorruptArchive("an extension header makes no sense")
        record = rest[: int(length) - len(length) - 1]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise CorruptArchive("an extension header makes no sense")
        if key not in _PAX_KEYS and not key.startswith((b"SCHILY.xattr.", b"GNU.sparse.")):
            raise UnsupportedArchive(f"an extension header holds the unknown key {printable(key)}")
        if key == b"size" and not value.isdigit():
            raise CorruptArchive("an extension header holds a size that is none")
        records[key] = value
        body = body[int(length) :]
    return records


def canonical(name: bytes) -> bytes:
    """Return a name without `./` before it and `/` behind it; empty for the root.

    Raises `UnsupportedArchive` for one with `..`.
    """
    stripped = name.rstrip(b"/")
    while stripped.startswith(b"./"):
        stripped = stripped[2:]
    if stripped in (b".", b""):
        return b""
    framed = b"/" + stripped + b"/"
    if b"//" in framed or b"/./" in framed or b"/../" in framed or b"\0" in stripped:
        raise UnsupportedArchive(f"the name {printable(name)} is not a plain path")
    return stripped


def printable(name: bytes) -> str:
    return ascii(name[:200].decode("utf-8", "replace"))


def _check(header: bytes) -> None:
    if header[257:262] != b"ustar":
        raise CorruptArchive("the stream is no tar of a known form")
    if number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
        raise CorruptArchive("a header's checksum is wrong")


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _sparse_blocks(window: Window, extent: int, header: bytes) -> int:
    """Return how many bytes of further sparse maps follow an old GNU sparse header."""
    more, bytes_seen = header[482], 0
    while more:
        if not window.need(extent + bytes_seen + BLOCK):
            raise CorruptArchive("the stream ends in a sparse map")
        more = window.peek(BLOCK, extent + bytes_seen)[504]
        bytes_seen += BLOCK
        if bytes_seen > MAX_EXTENSION_BYTES:
            raise UnsupportedArchive("a sparse map is larger than 1 MB")
    return bytes_seen


class Filter:
    """Decides for each member whether it is written.

    It remembers 64-bit hashes of names: a false duplicate is refused.
    """

    def __init__(
        self,
        source: int,
        target: int,
        report: Report,
        *,
        additions: Callable[[], int] | None = None,
        time_s: int | None = None,
        newest_s: int | None = None,
    ) -> None:
        """Read from `source`, write to `target`; `additions` opens the archive of additions.

        Without `additions`, Singularity writes into what is written here. `time_s` is the time of
        the folders that Docker prepared, and nothing has a later one than `newest_s`, both in
        seconds since 1970.
        """
        self._time_s, self._newest_s = time_s, newest_s
        self._window, self._target, self.report = Window(source, target), target, report
        self._additions = additions
        self._added_kinds: dict[bytes, int] | None = None
        self._names: set[int] = set()
        self._folders: set[int] = {hash(b"")}
        self._held: dict[bytes, bytes] = {}

    def copy_image(self) -> None:
        """Copy everything up to the end of the archive, without that end."""
        window = self._window
        while (member := next_member(window)) is not None:
            if member.name.partition(b"/")[0] in RESERVED and not self._may_stay(member):
                self._set_aside(member)
                continue
            if member.name in LEFT_OUT:
                self._leave_out(member)
                continue
            if self._held:
                self._release_parent(member.name)
            self._count(member)
            if self._time_s is not None and member.kind == _FOLDER and member.name in PREPARED:
                write_all(self._target, self._timed(member))
            else:
                self._age(member)
                window.keep(member.extent + member.body_bytes)
        window.keep(0)
        window.flush()
        if (
            not window.need(2 * BLOCK)
            or window.peek(2 * BLOCK) != 2 * END
            or not window.at_padding_only()
        ):
            raise CorruptArchive("the archive has no proper end")
        if not self.report.entries:
            raise CorruptArchive("the archive is empty")

    def add(self) -> None:
        """Write the additions whose names are not there yet, and the archive's end."""
        if self._additions is not None:
            self._add(Window(self._additions(), self._target))
        write_all(self._target, 2 * END)

    def _add(self, window: Window) -> None:
        while (member := next_member(window)) is not None:
            total = member.extent + member.body_bytes
            if hash(member.name) in self._names:
                window.drop(total)
                continue
            self._count(member)
            self.report.added += 1
            window.keep(total)
        window.flush()

    def _age(self, member: Member) -> None:
        """Give a member that is too new the newest time there may be, where it is in the window."""
        if self._newest_s is None or member.kind == ord("S"):  # its last block is no header
            return
        place = member.extent - BLOCK
        header = self._window.peek(BLOCK, place)
        if number(header[136:148]) > self._newest_s:
            self._window.replace(with_time(header, self._newest_s), place)

    def _timed(self, member: Member) -> bytes:
        """Take a folder's header out of the stream, and return it with the time that is given."""
        header = with_time(self._window.peek(member.extent), self._time_s)
        self._window.drop(member.extent)
        return header

    def _may_stay(self, member: Member) -> bool:
        """Return whether the image's own entry stays where Singularity has its own."""
        top, _, below = member.name.partition(b"/")
        if top in LAUNCHERS and below:
            return True
        if member.kind not in (*_FILE_TYPES, _FOLDER):
            return False
        if top in LAUNCHERS:
            return True
        added = self._added().get(member.name)
        return hash(member.name.rpartition(b"/")[0]) in self._folders and (
            added is None or added == member.kind == _FOLDER
        )

    def _added(self) -> dict[bytes, int]:
        """Return what Singularity puts into its folder: the kinds of entries by name."""
        if self._added_kinds is None:
            self._added_kinds = {} if self._additions is None else metadata_kinds(self._additions())
        return self._added_kinds

    def _set_aside(self, member: Member) -> None:
        self.report.set_aside += 1
        if len(self.report.set_aside_first) < MAX_SHOWN:
            self.report.set_aside_first.append(printable(member.name))
        self._window.drop(member.extent + member.body_bytes)

    def _leave_out(self, member: Member) -> None:
        """Skip a member; keep a folder's header, as with content it is the image's own."""
        if member.kind == _FOLDER:
            self._held[member.name] = with_time(self._window.peek(member.extent), self._time_s)
        self.report.left_out.append(member.name.decode("utf-8", "replace"))
        self._window.drop(member.extent + member.body_bytes)

    def _release_parent(self, name: bytes) -> None:
        parent = name.rpartition(b"/")[0]
        header = self._held.pop(parent, None)
        if header is not None:
            self._window.flush()
            write_all(self._target, header)
            self._count(
                Member(name=parent, kind=_FOLDER, link=b"", extent=len(header), body_bytes=0)
            )
            self.report.left_out.remove(parent.decode())

    def _count(self, member: Member) -> None:
        name, report = member.name, self.report
        if not name:
            if member.kind != _FOLDER:
                raise UnsupportedArchive("the root is not a folder")
            return
        if self._additions is None and name in WRITTEN and member.kind != _FOLDER:
            raise UnsupportedArchive(f"{printable(name)} is not a folder")
        key = hash(name)
        if key in self._names:
            raise UnsupportedArchive(f"{printable(name)} is there twice")
        if hash(name.rpartition(b"/")[0]) not in self._folders:
            raise UnsupportedArchive(f"{printable(name)} is not in a folder that came before it")
        if member.kind == ord("1"):
            target = hash(canonical(member.link))
            if target not in self._names or target in self._folders:
                raise UnsupportedArchive(
                    f"{printable(name)} links to {printable(member.link)}, which did not come before it"
                )
        else:
            report.inodes += 1
        if member.kind == _FOLDER:
            self._folders.add(key)
        self._names.add(key)
        report.entries += 1
        report.listed_lines += 1 + name.count(b"\n")
        report.body_bytes += member.body_bytes


def with_time(header: bytes, time_s: int | None) -> bytes:
    """Return the blocks before a body with another time in the last, which is the header itself.

    An extension that tells the time to a fraction of a second goes before it, and stays.
    """
    if time_s is None:
        return header
    last = bytearray(header[-BLOCK:])
    last[136:148] = b"%011o\0" % time_s
    last[148:156] = b" " * 8
    last[148:156] = b"%06o\0 " % sum(last)
    return header[:-BLOCK] + bytes(last)


def metadata_kinds(additions: int) -> dict[bytes, int]:
    """Return the kinds of what an archive has in Singularity's own folder, by name."""
    window, kinds = Window(additions, None), {}
    while (member := next_member(window)) is not None:
        if member.name.partition(b"/")[0] == METADATA:
            kinds[member.name] = member.kind
        window.drop(member.extent + member.body_bytes)
    return kinds


def await_file(path: str) -> int:
    """Open a file as soon as it exists. If it never will, the process that makes it ends us."""
    while True:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            time.sleep(0.005)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--additions")
    parser.add_argument("--time", type=int)
    parser.add_argument("--newest", type=int)
    parser.add_argument("--report", required=True)
    options = parser.parse_args()
    report = Report()
    try:
        additions = functools.partial(await_file, options.additions) if options.additions else None
        job = Filter(
            0, 1, report, additions=additions, time_s=options.time, newest_s=options.newest
        )
        job.copy_image()
        job.add()
        os.close(1)
    except UnsupportedArchive as error:
        print(error, file=sys.stderr)
        return EXIT_UNFIT
    except CorruptArchive as error:
        print(error, file=sys.stderr)
        return EXIT_BROKEN
    with open(options.report, "w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(report), file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
