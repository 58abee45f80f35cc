"""File leases say who uses a file or folder, across the processes of one machine.

A lease is a lock of the kernel (`flock`), so it ends with its process, even if that is killed. Users
of a file share its lease. A process that removes the file takes the lease exclusively, or leaves the
file where it is. So nothing is removed while it is in use, and a user who arrives during a removal
waits and then finds the file gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Share the lease of the file at `path` until the block ends; a missing file is created."""
    with _held(path, lambda: os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)):
        yield


@contextlib.contextmanager
def held_folder(path: Path) -> Iterator[None]:
    """Share the lease of the folder at `path` until the block ends; a missing folder is created."""

    def made() -> int:
        path.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    with _held(path, made):
        yield


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Yield whether a file or folder is unused; if so, no use of it begins until the block ends.

    A missing one counts as unused, and may be created meanwhile.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Hold the file at `path` alone until the block ends; a missing file is created.

    Other processes wait for it meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether a process uses the file or folder at present."""
    with alone(path) as free:
        return not free


@contextlib.contextmanager
def _held(path: Path, made: Callable[[], int]) -> Iterator[None]:
    while True:
        try:
            descriptor = made()
        except FileNotFoundError:  # a folder that was removed before it was opened
            if not path.parent.is_dir():
                raise
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file still has its name; it may have been removed while we waited."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
