"""Keep build logs in files, in a folder of this machine or a shared one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from service.logs.protocol import LogFacts, piece_bytes


@dataclasses.dataclass(frozen=True)
class FolderLogs:
    """A file for each run."""

    folder: Path

    def of(self, run_id: str) -> FileLog:
        return FileLog(self.folder / f"{run_id}.log")

    def all(self) -> Iterator[LogFacts]:
        for path in self.folder.glob("*.log"):
            status = path.stat()
            yield LogFacts(run_id=path.stem, size_bytes=status.st_size, changed_at=status.st_mtime)


@dataclasses.dataclass(frozen=True)
class FileLog:
    """A log in a file. Every line is visible to readers when `append` returns."""

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
    """The open file of a log."""

    descriptor: int

    def append(self, raw: bytes) -> None:
        with contextlib.suppress(OSError):  # the disk is full
            os.write(self.descriptor, raw)

    def flush(self) -> None:
        """Do nothing: every line is written at once."""

    def close(self) -> None:
        os.close(self.descriptor)
