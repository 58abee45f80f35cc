"""Ends a build's step when a disk runs full, so that it does not stop others."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from image_builder.errors import NoSpace
from image_builder.host.cancellation import CancelToken
from image_builder.host.step_writers import StepCommand, StepWriters

EVERY_S = 1.0
APART_S = 15.0
"""The least time between the ends of two builds: the room of the first may be enough."""
PATIENCE_S = 5.0
"""How long a build whose step is not the one that writes leaves it to others to end."""

_lock = threading.Lock()
_ended_at = float("-inf")


class DiskGuard(CancelToken):
    """Wraps a token, and also ends the work when a disk has too little free room.

    Of several builds, it is the one with the step that writes most, as far as that can be seen.
    """

    def __init__(
        self,
        cancel: CancelToken,
        folders: Sequence[Path],
        *,
        min_free_bytes: int,
        steps: Collection[StepCommand] = (),
        writers: StepWriters | None = None,
    ) -> None:
        """Guard work that may run these steps."""
        super().__init__()
        self._inner, self._folders, self._min_free_bytes = cancel, folders, min_free_bytes
        self._steps, self._writers = frozenset(steps), writers or StepWriters()
        self._checked_at = float("-inf")
        self._watched_since: float | None = None
        self._low_since: float | None = None

    def cancel(self, reason: str = "The build was cancelled.") -> None:
        self._inner.cancel(reason)

    @property
    def is_set(self) -> bool:
        return self._inner.is_set

    def wait(self, timeout_s: float) -> bool:
        return self._inner.wait(timeout_s)

    def check(self) -> None:
        """Raise what the wrapped token does, or `NoSpace` when a disk has too little room."""
        self._inner.check()
        now = time.monotonic()
        if now - self._checked_at < EVERY_S:
            return
        self._checked_at = now
        free_bytes = {folder: shutil.disk_usage(folder).free for folder in self._folders}
        fullest = min(free_bytes, key=lambda folder: free_bytes[folder])
        if free_bytes[fullest] >= 2 * self._min_free_bytes:
            self._watched_since = self._low_since = None
            return
        busiest, is_first_look = self._writers.busiest(), self._watched_since is None
        self._watched_since = self._watched_since or now
        if free_bytes[fullest] >= self._min_free_bytes or is_first_look:
            return  # growth shows at the second look
        if self._is_for_others(busiest, now) or not _may_end(now):
            return
        raise NoSpace(
            f"The disk of {fullest} has {free_bytes[fullest] / 1e9:.1f} GB free: the step was "
            "ended before it is full.",
            hint="Let the step write less, or ask the operator for more room.",
        )

    def _is_for_others(self, busiest: StepCommand | None, now: float) -> bool:
        """Return whether another build's step writes most, and that build still has time to end."""
        if self._low_since is None:
            self._low_since = now
        is_known = busiest is not None and bool(self._steps)
        return is_known and busiest not in self._steps and now - self._low_since < PATIENCE_S


def _may_end(now: float) -> bool:
    """Return whether a build may end: no other one of this process was ended just now."""
    global _ended_at
    with _lock:
        if now - _ended_at < APART_S:
            return False
        _ended_at = now
        return True
