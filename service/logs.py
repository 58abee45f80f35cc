"""Build logs: one file for each run, appended line by line, read from any byte on by any process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from image_builder.process import Secret, redactor

CHUNK_BYTES = 1024**2
WHOLE = 2**63 - 1
"""The part of a log that is all of it, however long it gets."""
MAX_LINE_BYTES = 16 * 1024


def log_path(tmp_folder: Path, run_id: str) -> Path:
    """Where the log of a run lies."""
    return tmp_folder / "logs" / f"{run_id}.log"


class RunLog:
    """A run's log, open for appending. Every line is there for readers when `line` returns.

    What would make the file longer than `max_bytes` is left out, and a last line says so. A disk that is full does
    not end the build for its log's sake.
    """

    def __init__(self, path: Path, *, max_bytes: int, secrets: Sequence[Secret] = ()) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._redact = redactor(secrets)
        self._descriptor = -1
        self._left_bytes = 0

    def __enter__(self) -> RunLog:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._left_bytes = self._max_bytes - os.fstat(self._descriptor).st_size
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    @property
    def size_bytes(self) -> int:
        """How long the log is now."""
        return os.fstat(self._descriptor).st_size

    def line(self, text: str) -> None:
        """Append one line, without any secret."""
        raw = self._redact(text).encode("utf-8", "replace")[:MAX_LINE_BYTES].replace(b"\n", b" ") + b"\n"
        if self._left_bytes < 0:
            return
        self._left_bytes -= len(raw)
        if self._left_bytes < 0:
            raw = b"[the log is full; what follows is not kept]\n"
        with contextlib.suppress(OSError):
            os.write(self._descriptor, raw)


def own_part(row: Any) -> int | None:
    """How many bytes of its run's log are a build's; None while it goes on.

    What is written later, for others who share the run, is not for whoever has what they asked for, or has cancelled.
    """
    if row.own_state is None:
        return None
    return WHOLE if row.log_bytes is None else int(row.log_bytes)


def read_from(path: Path, offset: int, end: int | None = None) -> bytes:
    """Up to `CHUNK_BYTES` of a log from a byte on, and nothing after `end`; nothing where there is nothing, or no log.
    """
    limit_bytes = CHUNK_BYTES if end is None else max(0, min(CHUNK_BYTES, end - offset))
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(limit_bytes)
    except OSError:
        return b""


def size_of(path: Path) -> int:
    """How long a log is at present."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def follow(path: Path, offset: int, *, ends_at: Callable[[], int | None], seconds: float, keep_alive_s: float = 10.0,
           tick_s: float = 0.5) -> Iterator[str]:
    """Server-sent events for a log from a byte on, for so many seconds at the most.

    `ends_at` says as `own_part` how much is to be sent.

    Each event holds whole lines, and its id is the byte after them: whoever comes back with it misses nothing and
    hears nothing twice. When the build has ended and all was sent, the last event is `end`.
    """
    deadline = time.monotonic() + seconds
    heard = time.monotonic()
    while True:
        end = ends_at()  # asked before the file is read: what is read then is all there is
        ended = end is not None
        while chunk := _whole_lines(read_from(path, offset, end), ended):
            offset += len(chunk)
            heard = time.monotonic()
            yield _event(chunk, offset)
        if ended:
            yield f"event: end\nid: {offset}\ndata: {offset}\n\n"
            return
        if time.monotonic() >= deadline:
            return
        if time.monotonic() - heard >= keep_alive_s:
            heard = time.monotonic()
            yield ": still here\n\n"
        time.sleep(tick_s)


def _whole_lines(chunk: bytes, ended: bool) -> bytes:
    """The part of a chunk that ends with a line's end; all of it when nothing follows, or no line ends in it."""
    end = chunk.rfind(b"\n") + 1
    return chunk[:end] if end and not (ended and len(chunk) < CHUNK_BYTES) else chunk if ended or len(
        chunk) >= CHUNK_BYTES else b""


def _event(chunk: bytes, offset: int) -> str:
    text = chunk.decode("utf-8", "replace").replace("\r", " ").removesuffix("\n")
    lines = "".join(f"data: {line}\n" for line in text.split("\n"))
    return f"id: {offset}\n{lines}\n"
