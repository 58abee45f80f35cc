"""Reads digests and sizes of files, and writes files that appear in one step."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1024**2


def sha256_of(file: BinaryIO) -> str:
    """Return the sha256 of an open file, in hex, from its current position to its end."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


class UnreadableFile(ValueError):
    """The file is missing, is no plain file, or is larger than its reader allows."""


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a file that a stranger's program may have written: a plain file of this size at most.

    No link is followed, as it would lead to this machine's own files. Raises `UnreadableFile`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise UnreadableFile(f"{path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableFile(f"{path.name} is no plain file")
    with open(descriptor, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UnreadableFile(f"{path.name} is larger than {max_bytes} bytes")
    return content


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder; 0 for what does not exist."""
    with contextlib.suppress(FileNotFoundError):
        return (
            path.stat().st_size
            if not path.is_dir()
            else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        )
    return 0


def link_file(file: Path, name: Path) -> None:
    """Give a file a further name in one step; readers of the file that had this name keep it.

    The folder is created if it is missing. Raises `OSError`, also across file systems.
    """
    name.parent.mkdir(parents=True, exist_ok=True)
    with replacing(name) as fresh:
        os.link(file, fresh)


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file, or replace it, in one step that a power cut does not undo.

    `mode` is that of the new file, less the umask.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as fresh:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(handle, "wb") as file:
            file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield the name of a file to write, which replaces `path` when the block ends.

    After an error `path` is as it was. A file that need not survive a power cut is not `durable`.
    """
    fresh = path.with_name(f".{secrets.token_hex(8)}.new")
    try:
        yield fresh
        if durable:
            move_into_place(fresh, path)
        else:
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)  # it stays where both names are one file's


def move_into_place(fresh: Path, path: Path) -> None:
    """Rename a file or folder of the same file system to `path`; both are on disk afterwards.

    A rename alone may reach the disk before the content does, which leaves an empty file.
    """
    sync(fresh)
    move_synced(fresh, path)


def move_synced(fresh: Path, path: Path) -> None:
    """Rename what is on disk already to `path`, and wait until the new name is on disk, too."""
    fresh.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
