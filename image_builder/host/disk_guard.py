"""Ends a build's step when a disk runs full, so that it does not stop others."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from image_builder.errors import NoSpace
from image_builder.host.cancellation import CancelToken

EVERY_S = 1.0
APART_S = 15.0
"""The least time between the ends of two builds: the room of the first may be enough."""

_lock = threading.Lock()
_ended_at = float("-inf")


class DiskGuard(CancelToken):
    """Wraps a token, and also ends the work when a disk has too little free room."""

    def __init__(
        self, cancel: CancelToken, folders: Sequence[Path], *, min_free_bytes: int
    ) -> None:
        super().__init__()
        self._inner, self._folders, self._min_free_bytes = cancel, folders, min_free_bytes
        self._checked_at = float("-inf")

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
        for folder in self._folders:
            free_bytes = shutil.disk_usage(folder).free
            if free_bytes < self._min_free_bytes and _may_end(now):
                raise NoSpace(
                    f"The disk of {folder} has {free_bytes / 1e9:.1f} GB free: the step was ended "
                    "before it is full.",
                    hint="Let the step write less, or ask the operator for more room.",
                )


def _may_end(now: float) -> bool:
    """Return whether a build may end: no other one of this process was ended just now."""
    global _ended_at
    with _lock:
        if now - _ended_at < APART_S:
            return False
        _ended_at = now
        return True
