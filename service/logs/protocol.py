"""Build logs: appended line by line by whoever works on a run, read from any byte on by any
process.

Two ways to keep them (`log_storage`): a file for each run, in a folder of this machine or a shared
one, and rows of the database, for workers and web processes that share nothing else
(`database_logs`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

CHUNK_BYTES = 1024**2


class Appender(Protocol):
    """A log's end, held by who writes it. No call raises: a build does not end for its log's sake."""

    def append(self, raw: bytes) -> None: ...

    def flush(self) -> None:
        """What was appended is there for readers now, or will not be."""

    def close(self) -> None: ...


class Log(Protocol):
    """One run's log."""

    def read(self, offset: int, end: int | None = None) -> bytes:
        """Up to `CHUNK_BYTES` from a byte on, and nothing after `end`; nothing where there is
        nothing, or no log.
        """

    def size_bytes(self) -> int:
        """How long it is at present."""

    def appender(self) -> Appender:
        """Open it for appending."""

    def remove(self) -> bool:
        """Remove it; True when it is gone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogFacts:
    """What clean-up has to know of a log. `changed_at` is seconds since the epoch."""

    run_id: str
    size_bytes: int
    changed_at: float


class Logs(Protocol):
    """Every log of the service."""

    def of(self, run_id: str) -> Log:
        """A run's log, written or not."""

    def all(self) -> Iterator[LogFacts]:
        """Those that are there."""


def piece_bytes(offset: int, end: int | None) -> int:
    """How much is read at once from `offset` on."""
    return CHUNK_BYTES if end is None else max(0, min(CHUNK_BYTES, end - offset))
