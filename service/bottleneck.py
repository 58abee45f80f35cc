"""Limit what runs at a time: a few others wait a little, the rest are asked to come back."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Hashable, Iterator

from service.errors import Busy


class Bottleneck:
    """`at_once` threads may be inside together, and `waiting` more may wait for that.

    Who waits holds a thread that others need, so there is a bound to it; `of_one` is the bound for
    those inside or waiting in the name of one user.
    """

    def __init__(
        self, at_once: int, *, waiting: int, message: str, of_one: int | None = None
    ) -> None:
        self._inside = threading.BoundedSemaphore(at_once)
        self._lock = threading.Lock()
        self._here: collections.Counter[Hashable] = collections.Counter()
        self._limit, self._of_one = at_once + waiting, of_one or at_once + waiting
        self._message = message

    @contextlib.contextmanager
    def passed(self, who: Hashable = None) -> Iterator[None]:
        """Hold a place for the length of the block. Raises `Busy` when too many wait already."""
        with self._lock:
            if self._here.total() >= self._limit or self._here[who] >= self._of_one:
                raise Busy(self._message)
            self._here[who] += 1
        try:
            with self._inside:
                yield
        finally:
            self._leave(who)

    def _leave(self, who: Hashable) -> None:
        with self._lock:
            self._here[who] -= 1
            if not self._here[who]:
                del self._here[who]


def resolving(threads: int) -> Bottleneck:
    """Return the bottleneck for looking up requests, in a process of so many threads."""
    return Bottleneck(
        max(2, threads // 2),
        waiting=max(2, threads // 8),
        of_one=max(4, threads // 2),
        message="Many requests are being looked up at the moment.",
    )
