"""A token that ends the work which holds it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from image_builder.errors import (
    Cancelled,
    CicError,
    ErrorCode,
    LimitReached,
)


class CancelToken:
    """Asks for the end of some work; set from any thread, checked wherever the work may stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._cause: Callable[[], CicError] = lambda: Cancelled("The build was cancelled.")

    def cancel(self, reason: str = "The build was cancelled.") -> None:
        """Ask for the end. The first reason stays."""
        self._end(lambda: Cancelled(reason))

    @contextlib.contextmanager
    def limited(self, seconds: float | None, code: ErrorCode) -> Iterator[None]:
        """Ask for the end, as a `LimitReached` with `code`, when the block takes longer than that."""
        if seconds is None:
            yield
            return
        timer = threading.Timer(
            seconds,
            self._end,
            [
                lambda: LimitReached(
                    f"It took longer than {seconds:.0f} s in all and was ended.", code=code
                )
            ],
        )
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self, cause: Callable[[], CicError]) -> None:
        if not self._event.is_set():
            self._cause = cause
            self._event.set()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep for `timeout_s` at the most; True as soon as the end was asked for."""
        return self._event.wait(timeout_s)

    def check(self) -> None:
        """Raise `Cancelled`, or `LimitReached`, if the end was asked for."""
        if self.is_set:
            raise self._cause()
