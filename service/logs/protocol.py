"""Define a build's log: its worker appends lines, and any process reads it from any byte on.

Two ways to keep them (`log_storage`): a file for each run, in a folder of this machine or a shared
one, and rows of the database, for workers and web processes that share nothing else
(`database_logs`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

CHUNK_BYTES = 32 * 1024
"""How much of a log is read at once, and held for each reader that takes it in slowly."""


class Appender(Protocol):
    """The end of a log, for its writer. No call raises: a build does not end for its log's sake."""

    def append(self, raw: bytes) -> None: ...

    def flush(self) -> None:
        """Make what was appended visible to readers, or drop it if that fails."""

    def close(self) -> None: ...


class Log(Protocol):
    """One run's log."""

    def read(self, offset: int, end: int | None = None) -> bytes:
        """Return up to `CHUNK_BYTES` from a byte on, none of them at or after `end`.

        It returns no bytes past the log's end, and where there is no log.
        """

    def size_bytes(self) -> int:
        """Return the log's present size."""

    def appender(self) -> Appender:
        """Open the log for appending."""

    def remove(self) -> bool:
        """Remove the log; True when it is gone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogFacts:
    """What clean-up needs to know of a log. `changed_at` is seconds since the epoch."""

    run_id: str
    size_bytes: int
    changed_at: float


class Logs(Protocol):
    """Every log of the service."""

    def of(self, run_id: str) -> Log:
        """Return a run's log, written or not."""

    def all(self) -> Iterator[LogFacts]:
        """Yield the facts of every log that exists."""


def piece_bytes(offset: int, end: int | None) -> int:
    """Return how much is read at once from `offset` on."""
    return CHUNK_BYTES if end is None else max(0, min(CHUNK_BYTES, end - offset))


def blocks(log: Log, begin: int, end: int) -> Iterator[bytes]:
    """Yield a part of a log piece by piece, so that a slow reader holds one piece."""
    offset = begin
    while offset < end and (block := log.read(offset, end)):
        offset += len(block)
        yield block
