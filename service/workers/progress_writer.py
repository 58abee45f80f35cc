"""Write how far a build is: the newest figures, and not too often."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class ProgressWriter:
    """Passes on the newest of what it is given, at most once in `every_s` seconds.

    What comes too soon is passed on later, so that a long step does not hide behind the short one
    before it. Threads may share it.
    """

    def __init__(self, write: Callable[[int, int, str], None], every_s: float) -> None:
        self._write, self._every_s = write, every_s
        self._lock = threading.Lock()
        self._written_at = float("-inf")
        self._latest: tuple[int, int, str] | None = None
        self._timer: threading.Timer | None = None

    def give(self, done: int, total: int, what: str) -> None:
        """Write a figure now, or in a moment; the end is written at once."""
        with self._lock:
            self._latest = (done, total, what)
            wait_s = self._written_at + self._every_s - time.monotonic()
            if done >= total or wait_s <= 0:
                self._pass_on()
            elif self._timer is None:
                self._timer = threading.Timer(wait_s, self._write_later)
                self._timer.daemon = True
                self._timer.start()

    def stop(self) -> None:
        """Forget what is not written yet: it is not true any more."""
        with self._lock:
            self._latest = None
            self._end_timer()

    def _write_later(self) -> None:
        with self._lock:
            self._timer = None
            try:
                self._pass_on()
            except Exception:  # the build itself learns of a database that is away
                _log.warning("progress was not written", exc_info=True)

    def _pass_on(self) -> None:
        self._end_timer()
        if self._latest is not None:
            latest, self._latest = self._latest, None
            self._written_at = time.monotonic()
            self._write(*latest)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
