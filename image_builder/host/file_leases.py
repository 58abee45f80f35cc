"""Who uses what: locks on files and folders, which hold across processes and end with their holder,
however it ends.

Whoever uses a thing holds its lock together with others. Whoever removes it holds the lock alone,
or leaves the thing where it is. So nothing is removed that somebody uses, and who comes while it is
removed waits for that and finds it gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Use the thing that `path` stands for: a file, which is made where there is none."""
    with _held(path, lambda: os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)):
        yield


@contextlib.contextmanager
def held_folder(path: Path) -> Iterator[None]:
    """Use a folder, which is made where there is none."""

    def made() -> int:
        path.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    with _held(path, made):
        yield


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody uses the file or folder at `path`, and nobody can begin to until the block
    ends.

    One that is not there is used by nobody, and may be made meanwhile.
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


def is_held(path: Path) -> bool:
    """Whether somebody uses the file or folder at present."""
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
    """Whether an open file still has its name: it may have been removed while we waited."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
