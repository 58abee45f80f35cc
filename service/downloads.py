"""Bring a finished SIF to its user: the service sends it, or a front server does through a link."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import os
import re
import shutil
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO

from flask import Response, request

from image_builder.host import files
from image_builder.plan.image_name import is_private_name
from image_builder.store.image_store import Images
from service.problems import problem

LINK_LIFE_S = 6 * 3600.0
"""How long a download may begin through a link. One that has begun goes on."""

LINK_EVERY_S = 3600.0
"""How long the same links are handed out."""
LINKS = 8
"""So many links to a SIF are handed out in that time."""
LINK_DIGITS = 48
ON_ITS_WAY_S = 3600.0

CONTENT_TYPE = "application/octet-stream"
BLOCK_BYTES = 256 * 1024
_asked = itertools.count()
_LINK = re.compile(r"[0-9a-f]{48}")


def send_sif(images: Images, sha256: str, filename: str) -> Response:
    """Return the answer that sends a stored SIF, or the range of it that was asked for.

    Raises `FileNotFoundError`.
    """
    etag = f'"{sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if request.if_none_match.contains(sha256):
        return Response(status=304, headers=headers)
    body = _Body(images, sha256)
    wanted = _wanted_range(sha256, body.size_bytes)
    if wanted is None:
        body.close()
        return problem(
            416,
            "RANGE_NOT_SATISFIABLE",
            f"The image has {body.size_bytes} bytes, and no such part.",
            hint="Ask for a range within it, or leave Range out.",
            headers=headers | {"Content-Range": f"bytes */{body.size_bytes}"},
        )
    begin, end, is_part = wanted
    headers |= {
        "Content-Type": CONTENT_TYPE,
        "Content-Length": str(end - begin),
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    if is_part:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{body.size_bytes}"
    status = 206 if is_part else 200
    if request.method == "HEAD":
        body.close()
        return Response(status=status, headers=headers)
    body.limit(begin, end)
    wrap = (
        request.environ.get("wsgi.file_wrapper") if images.path_of(sha256) else None
    )  # the kernel sends files
    return Response(
        wrap(body, BLOCK_BYTES) if wrap else body,
        status=status,
        headers=headers,
        direct_passthrough=True,
    )


def _wanted_range(sha256: str, size_bytes: int) -> tuple[int, int, bool] | None:
    """Return the first byte, the one after the last, and whether that is a part of the file.

    None stands for a range that the file does not have. Several ranges at once, or a range of
    another file than ours (If-Range), get the whole file.
    """
    asked, condition = request.range, request.if_range
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1 or size_bytes == 0:
        return 0, size_bytes, False
    if (condition.etag is not None or condition.date is not None) and condition.etag != sha256:
        return 0, size_bytes, False
    span = asked.range_for_length(size_bytes)
    return None if span is None else (span[0], span[1], True)


class _Body:
    """A stored SIF on its way, held open until it is closed, so that clean-up leaves it alone.

    A file to the server (for sendfile), and an iterable of blocks where the server has no better
    way.
    """

    def __init__(self, images: Images, sha256: str) -> None:
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO = self._stack.enter_context(images.opened(sha256))
        self.size_bytes = self._file.seek(0, os.SEEK_END)
        self._left_bytes = self.size_bytes

    def limit(self, begin: int, end: int) -> None:
        """Send the bytes from `begin` until before `end`."""
        self._file.seek(begin)
        self._left_bytes = end - begin

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(self._left_bytes if size < 0 else min(size, self._left_bytes))
        self._left_bytes -= len(block)
        return block

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def __iter__(self) -> Iterator[bytes]:
        while block := self.read(BLOCK_BYTES):
            yield block

    def close(self) -> None:
        self._stack.close()


def make_link(sif: Path, filename: str, folder: Path, secret: str) -> str:
    """Make a second, unguessable name for a SIF below `folder`, and return its path there.

    A front server serves `folder`. Those who ask for a SIF within `LINK_EVERY_S` get one of `LINKS`
    names in turn, so that requests fill no disk.
    """
    period, number = int(time.time() // LINK_EVERY_S), next(_asked) % LINKS
    what = f"download link {sif.name} {filename} {period} {number}".encode()
    token = hmac.new(secret.encode(), what, hashlib.sha256).hexdigest()[:LINK_DIGITS]
    (folder / token).mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.link(sif, folder / token / filename)
    return f"{token}/{filename}"


def offer_all_publicly(images: Images, folder: Path, *, is_wanted: bool) -> None:
    """Link every SIF with a name that everybody may see under it in `folder`, and remove all other links.

    Without `is_wanted` the folder ends empty. Others link at the same time: the folder is listed
    before the names are, so that a link made meanwhile is not removed, and names on their way stay
    for `ON_ITS_WAY_S`.
    """
    there = list(os.scandir(folder)) if folder.is_dir() else []
    kept = images.names() if is_wanted else {}
    names = {name: record for name, record in kept.items() if not is_private_name(name)}
    for entry in there:
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False) and not _stays(entry, names):
                Path(entry.path).unlink()
    for name, record in names.items():
        if record.sha256 is not None:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                sif = images.path_of(record.sha256)
                if sif is None:
                    return
                if not (folder / name).exists() or not (folder / name).samefile(sif):
                    files.link_file(sif, folder / name)


def _stays(entry: os.DirEntry[str], names: Container[str]) -> bool:
    if entry.name.startswith("."):
        return time.time() - entry.stat(follow_symlinks=False).st_ctime < ON_ITS_WAY_S
    return entry.name in names


def is_linked(sif: Path, folder: Path) -> bool:
    """Return whether a link to this SIF exists that has not been swept."""
    with contextlib.suppress(FileNotFoundError):
        if (status := sif.stat()).st_nlink > 1:
            return any(os.path.samestat(status, linked.stat()) for linked in folder.glob("*/*"))
    return False


def sweep_links(folder: Path, life_s: float = LINK_LIFE_S) -> int:
    """Remove the links that have expired, and return how many there were."""
    removed = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if (
                _LINK.fullmatch(entry.name)
                and time.time() - entry.stat(follow_symlinks=False).st_mtime > life_s
            ):
                shutil.rmtree(entry.path, ignore_errors=True)
                removed += 1
    return removed
