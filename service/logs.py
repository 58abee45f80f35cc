"""The log of a run: one file, appended by its worker and read from an offset by anybody.

A reader in another process sees a line as soon as it was written. Offsets are bytes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType

from image_builder.process import Secret, redactor

_RUN_ID = re.compile(r"[0-9a-f-]{36}\Z")


class RunLogs:
    """The logs below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, run_id: str) -> Path:
        """Where a run's log lies, written or not."""
        if not _RUN_ID.match(run_id):
            raise ValueError(f"{run_id[:50]!r} is not a run's id")
        return self.folder / f"{run_id}.log"

    def writer(self, run_id: str, secrets: tuple[Secret, ...] = ()) -> LogWriter:
        """Append to a run's log; the secrets are blotted out of every line, whoever wrote it."""
        return LogWriter(self.path(run_id), secrets)

    def read(self, run_id: str, offset: int, limit: int = 1024**2) -> bytes:
        """At most `limit` bytes from `offset` on, cut behind the last line that fits; empty at the end."""
        try:
            with open(self.path(run_id), "rb") as file:
                file.seek(offset)
                chunk = file.read(limit)
        except FileNotFoundError:
            return b""
        if len(chunk) == limit and (end := chunk.rfind(b"\n")) >= 0:
            return chunk[:end + 1]
        return chunk

    def size(self, run_id: str) -> int:
        try:
            return self.path(run_id).stat().st_size
        except FileNotFoundError:
            return 0


class LogWriter:
    """Appends whole lines; a context manager."""

    def __init__(self, path: Path, secrets: tuple[Secret, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._redact = redactor(secrets)

    def line(self, text: str) -> None:
        """Append one line, in one write."""
        os.write(self._descriptor, self._redact(text).encode("utf-8", "replace") + b"\n")

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        os.close(self._descriptor)
