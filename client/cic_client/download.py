"""Fetch an image file: resumed where it stopped, bounded by its size, and checked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import requests

from cic_client.errors import ClientError, UnexpectedAnswer, Unreachable, WrongChecksum
from cic_client.models import Image
from cic_client.text import size_text
from cic_client.transport import TRIES

BLOCK_BYTES = 64 * 1024
"""So much is lost, and fetched again, where a connection breaks."""
HASHED_BYTES = 1024**2
PAUSE_S = 10.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")

Fetched = TypeVar("Fetched")
Progress = Callable[[int, int], None]
"""Is called with how many bytes are here, and of how many."""
Open = Callable[[int], requests.Response]
"""Opens the image from a byte on."""


def fetch(image: Image, target: Path, open_from: Open, progress: Progress) -> Path:
    """Return the path of the whole image.

    What an earlier attempt left is kept and completed. Raises `Unreachable` where the connection
    breaks before all of it is there, and `WrongChecksum`.
    """
    sha256, size_bytes = _promised(image)
    if target.is_file() and target.stat().st_size == size_bytes and _digest(target) == sha256:
        progress(size_bytes, size_bytes)
        return target
    # Of this very image: one that has taken its name since begins afresh.
    part = target.with_name(f"{target.name[:200]}.{sha256[:8]}.part")
    with _full_disk(part.parent):
        _complete(part, size_bytes, open_from, progress)
    if _digest(part) != sha256:
        part.unlink()
        raise WrongChecksum(f"What came is not {image.filename} (wrong sha256), and was removed.")
    part.replace(target)
    return target


def until_whole(
    attempt: Callable[[Progress], Fetched], progress: Progress, pause: Callable[[float], None]
) -> Fetched:
    """Return what an attempt does, which goes on where the one before it broke.

    Raises what the last attempt did, where several in a row have brought nothing.
    """
    here, failures = 0, 0
    while True:
        last, here = here, 0

        def noted(present: int, size: int) -> None:
            nonlocal here
            here = present
            progress(present, size)

        try:
            return attempt(noted)
        except Unreachable:
            failures = 1 if here > last else failures + 1
            if failures >= TRIES:
                raise
        pause(PAUSE_S)


class Copy:
    """An image that is written where nothing can be taken back, such as standard output."""

    def __init__(self, image: Image, write: Callable[[bytes], object]) -> None:
        self._sha256, self._size_bytes = _promised(image)
        self._name = image.filename
        self._write = write
        self._digest = hashlib.sha256()
        self._present = 0

    def go_on(self, open_from: Open, progress: Progress) -> None:
        """Write what is missing. Raises `Unreachable` where that breaks, and `WrongChecksum`."""
        with _breaking(), open_from(self._present) as answer:
            if self._present and answer.status_code != requests.codes.partial_content:
                raise UnexpectedAnswer("The service does not go on where the download stopped.")
            for block in _blocks(answer, self._size_bytes - self._present):
                self._write(block)
                self._digest.update(block)
                self._present += len(block)
                progress(self._present, self._size_bytes)
        if self._digest.hexdigest() != self._sha256:
            raise WrongChecksum(f"What came is not {self._name} (wrong sha256): do not use it.")


def _promised(image: Image) -> tuple[str, int]:
    """Return the sha256 and the size that the service names."""
    sha256, size_bytes = image.sha256 or "", image.size_bytes
    if not _NAME.fullmatch(image.filename) or not _SHA256.fullmatch(sha256) or size_bytes is None:
        raise UnexpectedAnswer(
            "The service has no file of this image, or names it as no service does."
        )
    return sha256, size_bytes


def _complete(part: Path, size_bytes: int, open_from: Open, progress: Progress) -> None:
    with part.open("ab") as file:
        if file.tell() > size_bytes:
            file.truncate(0)
        present = file.seek(0, os.SEEK_END)
        progress(present, size_bytes)
        if present == size_bytes:
            return
        _require_room(part, size_bytes - present)
        with _breaking(), open_from(present) as answer:
            if present and answer.status_code != requests.codes.partial_content:
                file.truncate(0)  # the service sends it whole
                present = file.seek(0)
            for block in _blocks(answer, size_bytes - present):
                present += file.write(block)
                progress(present, size_bytes)


def _blocks(answer: requests.Response, missing: int) -> Iterator[bytes]:
    """Yield so many bytes of an answer, and no more. Raises `Unreachable` if there are fewer."""
    for block in answer.iter_content(BLOCK_BYTES):
        yield block[:missing]
        missing -= len(block)
        if missing <= 0:
            return
    raise Unreachable("The download stops before its end. The same call resumes it.")


@contextlib.contextmanager
def _breaking() -> Iterator[None]:
    """Tell how a connection breaks as `Unreachable`."""
    try:
        yield
    except requests.RequestException as error:
        raise Unreachable(f"The download stops: {error}. The same call resumes it.") from None


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Tell that a disk or a quota is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ClientError(
            f"No space is left in {folder.absolute()}: make room, and the same call resumes the download."
        ) from None


def _require_room(part: Path, missing: int) -> None:
    """Refuse what does not fit, before any of it is fetched. Raises `ClientError`."""
    free = shutil.disk_usage(part.parent).free
    if free < missing:
        raise ClientError(
            f"{size_text(missing)} are missing, and {part.parent.absolute()} has room for "
            f"{size_text(free)}: make room, or name another folder (--to)."
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()
