"""Fetch an image file: resumed where it stopped, bounded by its size, and checked."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import requests

from cic_client.errors import UnexpectedAnswer, Unreachable, WrongChecksum
from cic_client.models import Image

BLOCK_BYTES = 64 * 1024
"""So much is lost, and fetched again, where a connection breaks."""
HASHED_BYTES = 1024**2
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")

Progress = Callable[[int, int], None]
"""Is called with how many bytes are here, and of how many."""
Open = Callable[[int], requests.Response]
"""Opens the image from a byte on."""


def fetch(image: Image, folder: Path, open_from: Open, progress: Progress) -> Path:
    """Return the path of the whole image in `folder`.

    What an earlier attempt left is kept and completed. Raises `Unreachable` where the connection
    breaks before all of it is there, and `WrongChecksum`.
    """
    sha256, size_bytes = image.sha256 or "", image.size_bytes
    if not _NAME.fullmatch(image.filename) or not _SHA256.fullmatch(sha256) or size_bytes is None:
        raise UnexpectedAnswer(
            "The service has no file of this image, or names it as no service does."
        )
    target = folder / image.filename
    if target.is_file() and target.stat().st_size == size_bytes and _digest(target) == sha256:
        progress(size_bytes, size_bytes)
        return target
    # Of this very image: one that has taken its name since begins afresh.
    part = folder / f"{image.filename[:200]}.{sha256[:8]}.part"
    _complete(part, size_bytes, open_from, progress)
    if _digest(part) != sha256:
        part.unlink()
        raise WrongChecksum(f"What came is not {image.filename} (wrong sha256), and was removed.")
    part.replace(target)
    return target


def _complete(part: Path, size_bytes: int, open_from: Open, progress: Progress) -> None:
    with part.open("ab") as file:
        if file.tell() > size_bytes:
            file.truncate(0)
        present = file.seek(0, os.SEEK_END)
        progress(present, size_bytes)
        if present >= size_bytes:
            return
        try:
            with open_from(present) as answer:
                if answer.status_code != requests.codes.partial_content:
                    file.truncate(0)  # the service sends it whole
                    present = file.seek(0)
                for block in answer.iter_content(BLOCK_BYTES):
                    present += file.write(block[: size_bytes - present])
                    progress(present, size_bytes)
                    if present >= size_bytes:
                        return
        except requests.RequestException as error:
            raise Unreachable(f"The download stops: {error}. The same call resumes it.") from None
    raise Unreachable("The download stops before its end. The same call resumes it.")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()
