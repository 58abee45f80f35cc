"""Keeps the log of one build."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

from image_builder.errors import (
    ErrorCode,
    LimitReached,
)
from image_builder.observer import Observer
from image_builder.spack.install_progress import InstallProgress
from image_builder.state import BuildState

RECENT_LINES = 20_000


class DigestingObserver:
    """Passes everything on to another observer, and keeps a digest of the lines."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._digest = hashlib.sha256()
        self.lines = 0

    @property
    def sha256(self) -> str:
        """Return the digest of the lines so far in UTF-8, each with a line end."""
        return self._digest.hexdigest()

    def entered(self, state: BuildState) -> None:
        self._observer.entered(state)

    def progress(self, done: int, total: int, what: str) -> None:
        self._observer.progress(done, total, what)

    def line(self, text: str) -> None:
        self._digest.update(text.encode("utf-8", "replace") + b"\n")
        self.lines += 1
        self._observer.line(text)


class BuildLog:
    """Passes on a build's lines, counts them, and keeps the last ones to find a failure's cause."""

    def __init__(self, observer: Observer, max_bytes: int) -> None:
        self._observer = observer
        self._max_bytes = max_bytes
        self._bytes = 0
        self._install: InstallProgress | None = None
        self._lines: deque[str] = deque(maxlen=RECENT_LINES)

    @property
    def recent(self) -> tuple[str, ...]:
        """Return the last lines of the present command."""
        return tuple(self._lines)

    def begin(self, command: str) -> None:
        """Begin a new command: earlier lines say nothing of its failure."""
        self._lines.clear()
        self._observer.line(f"$ {command}")

    def follow_install(self, packages: Sequence[str]) -> None:
        """Count from now on, from Spack's lines, how many of the named packages are installed."""
        self._install = InstallProgress(packages) if packages else None

    def line(self, text: str) -> None:
        """Add one line. Raises `LimitReached` when the log grows beyond its limit."""
        self._lines.append(text)
        self._bytes += len(text) + 1
        if self._bytes > self._max_bytes:
            raise LimitReached(
                f"The build wrote more than {self._max_bytes} bytes of log and was ended.",
                code=ErrorCode.LOG_TOO_LARGE,
            )
        self._observer.line(text)
        if self._install is not None and (progress := self._install.heard(text)):
            self._observer.progress(*progress)
