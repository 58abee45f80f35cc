"""Write the newest of what is given, and not too often."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)
Value = TypeVar("Value")


class LatestWriter(Generic[Value]):
    """Passes on the newest of what it is given, at most once in `every_s` seconds.

    What comes too soon is passed on later, so that a long step does not hide behind the short one
    before it. Threads may share it.
    """

    def __init__(self, write: Callable[[Value], None], every_s: float) -> None:
        self._write, self._every_s = write, every_s
        self._lock = threading.Lock()
        self._written_at = float("-inf")
        self._latest: list[Value] = []
        self._timer: threading.Timer | None = None

    def give(self, value: Value, *, at_once: bool = False) -> None:
        """Write a value now, or in a moment."""
        with self._lock:
            self._latest = [value]
            wait_s = self._written_at + self._every_s - time.monotonic()
            if at_once or wait_s <= 0:
                self._pass_on()
            elif self._timer is None:
                self._timer = threading.Timer(wait_s, self._write_later)
                self._timer.daemon = True
                self._timer.start()

    def stop(self) -> None:
        """Forget what is not written yet: it is not true any more."""
        with self._lock:
            self._latest = []
            self._end_timer()

    def _write_later(self) -> None:
        with self._lock:
            self._timer = None
            try:
                self._pass_on()
            except Exception:  # the build itself learns of a database that is away
                _log.warning("what is newest was not written", exc_info=True)

    def _pass_on(self) -> None:
        self._end_timer()
        latest, self._latest = self._latest, []
        for value in latest:
            self._written_at = time.monotonic()
            self._write(value)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
