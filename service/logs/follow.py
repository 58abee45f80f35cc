"""Follow a log as it grows, for one reader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from service.logs.protocol import CHUNK_BYTES, Log

WHOLE = 2**63 - 1
"""The part of a log that is all of it, however long it gets."""


def own_part(row: Any) -> int | None:
    """Return how many bytes of its run's log belong to a build; None while it goes on.

    What is written later, for others who share the run, is not for a build that has its result or
    was cancelled.
    """
    if row.own_state is None:
        return None
    return WHOLE if row.log_bytes is None else int(row.log_bytes)


def follow(
    log: Log,
    offset: int,
    *,
    ends_at: Callable[[], int | None],
    seconds: float,
    keep_alive_s: float = 10.0,
    tick_s: float = 0.5,
    waits: bool = True,
) -> Iterator[str]:
    """Yield server-sent events for a log from a byte on, for so many seconds at the most.

    `ends_at` returns, as `own_part` does, how much is to be sent. Without `waits` it yields an
    empty text where it has nothing yet: the server waits, and no thread does.

    Each event holds whole lines, and its id is the byte after them: a reader that reconnects with
    it misses nothing and gets nothing twice. When the build has ended and all was sent, the last
    event is `end`.
    """
    deadline = time.monotonic() + seconds
    heard = time.monotonic()
    while True:
        end = ends_at()  # asked before the log is read: what is read then is all there is
        ended = end is not None
        while chunk := _whole_lines(log.read(offset, end), ended):
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
        if waits:
            time.sleep(tick_s)
        else:
            yield ""


def _whole_lines(chunk: bytes, ended: bool) -> bytes:
    """Return the part of a chunk that ends with a line's end.

    It is all of the chunk when nothing follows, or no line ends in it.
    """
    end = chunk.rfind(b"\n") + 1
    return (
        chunk[:end]
        if end and not (ended and len(chunk) < CHUNK_BYTES)
        else chunk
        if ended or len(chunk) >= CHUNK_BYTES
        else b""
    )


def _event(chunk: bytes, offset: int) -> str:
    text = chunk.decode("utf-8", "replace").replace("\r", " ").removesuffix("\n")
    lines = text.replace("\n", "\ndata: ")
    return f"id: {offset}\ndata: {lines}\n\n"
