"""What few may do at a time: the others wait a little, in small number, or come back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from service.errors import Busy


class Bottleneck:
    """`at_once` threads may be inside together, and `waiting` more may wait for that.

    Who waits holds a thread that others need, so there is a bound to it.
    """

    def __init__(self, at_once: int, *, waiting: int, message: str) -> None:
        self._inside = threading.BoundedSemaphore(at_once)
        self._here = threading.BoundedSemaphore(at_once + waiting)
        self._message = message

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        """Be inside for the length of the block. Raises `Busy` when too many wait already."""
        if not self._here.acquire(blocking=False):
            raise Busy(self._message)
        try:
            with self._inside:
                yield
        finally:
            self._here.release()

