"""Keeps the log of one build, and reads from it how far the build is and what took how long."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence

from image_builder.errors import (
    ErrorCode,
    LimitReached,
)
from image_builder.observer import Observer
from image_builder.spack.install_lines import LineReader
from image_builder.spack.install_progress import InstallProgress
from image_builder.state import BuildState
from image_builder.timeline.install_times import InstallTimes
from image_builder.timeline.layer_times import LayerTimes
from image_builder.timeline.spans import PACKAGE, Span

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

    def span(self, span: Span) -> None:
        self._observer.span(span)


class BuildLog:
    """Passes on a build's lines, counts them, and keeps the last ones to find a failure's cause.

    `packages` are the spans of the packages that were installed, by their hashes.
    """

    def __init__(
        self, observer: Observer, max_bytes: int, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._observer = observer
        self._max_bytes = max_bytes
        self._clock = clock
        self._bytes = 0
        self._layers: LayerTimes | None = None
        self._install: _Install | None = None
        self._lines: deque[str] = deque(maxlen=RECENT_LINES)
        self.packages: dict[str, Span] = {}

    @property
    def recent(self) -> tuple[str, ...]:
        """Return the last lines of the present command."""
        return tuple(self._lines)

    def begin(self, command: str) -> None:
        """Begin a new buildx command: earlier lines say nothing of its failure."""
        self._lines.clear()
        self._layers = LayerTimes()
        self._observer.line(f"$ {command}")

    def end(self) -> None:
        """End the command: later lines are not buildx's."""
        now_s = self._clock()
        for times in (self._layers, self._install and self._install.times):
            for span in times.stop(now_s) if times else ():
                self._report(span)
        self._layers = None

    def follow_install(self, packages: Sequence[str]) -> None:
        """Read from now on, from Spack's lines, what becomes of the named packages."""
        self._install = _Install(packages) if packages else None

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
        if self._layers is not None and (layer := self._layers.heard(text, self._clock())):
            self._report(layer)
        if self._install is not None:
            self._read_install(self._install, text)

    def _read_install(self, install: _Install, text: str) -> None:
        said = install.reader.read(text)
        if said is None:
            return
        if progress := install.progress.count(said, install.reader.now_s):
            self._observer.progress(*progress)
        if span := install.times.heard(said, self._clock()):
            self._report(span)

    def _report(self, span: Span) -> None:
        if span.kind == PACKAGE:
            self.packages[span.hash] = span
        self._observer.span(span)


class _Install:
    """What is read from the lines of one install."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.reader, self.progress = LineReader(packages), InstallProgress(packages)
        self.times = InstallTimes()
