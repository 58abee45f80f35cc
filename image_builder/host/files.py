"""Files of this machine: digests, sizes, and further names."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1024**2


def sha256_of(file: BinaryIO) -> str:
    """The sha256 of a file from where it is open."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def bytes_of(path: Path) -> int:
    """The size of a file, or of all in a folder; what is gone has none."""
    with contextlib.suppress(FileNotFoundError):
        return (
            path.stat().st_size
            if not path.is_dir()
            else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        )
    return 0


def link_file(file: Path, name: Path) -> None:
    """Give a file a further name in one step: a reader of what had that name before keeps it.

    The folder is made if it is missing. Raises `OSError`, also across file systems.
    """
    name.parent.mkdir(parents=True, exist_ok=True)
    fresh = name.with_name(f".{secrets.token_hex(8)}.new")
    try:
        os.link(file, fresh)
        os.replace(fresh, name)
    finally:
        fresh.unlink(missing_ok=True)  # rename leaves both names of one file where they are
