"""Build logs: appended line by line by whoever works on a run, read from any byte on by any
process.

Two ways to keep them (`log_storage`): a file for each run, in a folder of this machine or a shared
one, and rows of the database, for workers and web processes that share nothing else
(`database_logs`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.host.secrets import Secret, redactor

CHUNK_BYTES = 1024**2
WHOLE = 2**63 - 1
"""The part of a log that is all of it, however long it gets."""
MAX_LINE_BYTES = 16 * 1024


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


def logs_of(settings: Settings, engine: Engine) -> Logs:
    """Where these settings keep logs."""
    if settings.service.keeps_logs_in_database:
        from service.database_logs import DatabaseLogs

        return DatabaseLogs(engine)
    return FolderLogs(settings.library.build.tmp_folder / "logs")


@dataclasses.dataclass(frozen=True)
class FolderLogs:
    """A file for each run."""

    folder: Path

    def of(self, run_id: str) -> FileLog:
        return FileLog(self.folder / f"{run_id}.log")

    def all(self) -> Iterator[LogFacts]:
        for path in self.folder.glob("*.log"):
            found = path.stat()
            yield LogFacts(run_id=path.stem, size_bytes=found.st_size, changed_at=found.st_mtime)


@dataclasses.dataclass(frozen=True)
class FileLog:
    """A log that is a file. Every line is there for readers when `append` returns."""

    path: Path

    def read(self, offset: int, end: int | None = None) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(piece_bytes(offset, end))
        except OSError:
            return b""

    def size_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def appender(self) -> FileAppender:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FileAppender(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))

    def remove(self) -> bool:
        self.path.unlink(missing_ok=True)
        return True


@dataclasses.dataclass(frozen=True)
class FileAppender:
    """The open file."""

    descriptor: int

    def append(self, raw: bytes) -> None:
        with contextlib.suppress(OSError):  # the disk is full
            os.write(self.descriptor, raw)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        os.close(self.descriptor)


def piece_bytes(offset: int, end: int | None) -> int:
    """How much is read at once from `offset` on."""
    return CHUNK_BYTES if end is None else max(0, min(CHUNK_BYTES, end - offset))


class RunLog:
    """A run's log, open for appending lines. Secrets are blotted out.

    What would make it longer than `max_bytes` is left out, and a last line says so.
    """

    def __init__(self, log: Log, *, max_bytes: int, secrets: Sequence[Secret] = ()) -> None:
        self._log, self._max_bytes = log, max_bytes
        self._redact = redactor(secrets)
        self._left_bytes = 0

    def __enter__(self) -> RunLog:
        self._appender = self._log.appender()
        self._left_bytes = self._max_bytes - self._log.size_bytes()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._appender.close()

    @property
    def size_bytes(self) -> int:
        """How long the log is now, all of it there for readers."""
        self.flush()
        return self._log.size_bytes()

    def flush(self) -> None:
        """Before others are told that the build has ended: they read the log then."""
        self._appender.flush()

    def line(self, text: str) -> None:
        """Append one line, without any secret."""
        raw = (
            self._redact(text).encode("utf-8", "replace")[:MAX_LINE_BYTES].replace(b"\n", b" ")
            + b"\n"
        )
        if self._left_bytes < 0:
            return
        self._left_bytes -= len(raw)
        self._appender.append(
            raw if self._left_bytes >= 0 else b"[the log is full; what follows is not kept]\n"
        )


def own_part(row: Any) -> int | None:
    """How many bytes of its run's log are a build's; None while it goes on.

    What is written later, for others who share the run, is not for whoever has what they asked for,
    or has cancelled.
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
) -> Iterator[str]:
    """Server-sent events for a log from a byte on, for so many seconds at the most.

    `ends_at` says as `own_part` how much is to be sent.

    Each event holds whole lines, and its id is the byte after them: whoever comes back with it
    misses nothing and hears nothing twice. When the build has ended and all was sent, the last
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
        time.sleep(tick_s)


def _whole_lines(chunk: bytes, ended: bool) -> bytes:
    """The part of a chunk that ends with a line's end; all of it when nothing follows, or no line
    ends in it.
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
    lines = "".join(f"data: {line}\n" for line in text.split("\n"))
    return f"id: {offset}\n{lines}\n"
