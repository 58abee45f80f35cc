"""Ends work from another thread, by a token that the work carries."""

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
    """Asks work to end; set from any thread, checked by the work wherever it can stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._cause: Callable[[], CicError] = lambda: Cancelled("The build was cancelled.")

    def cancel(self, reason: str = "The build was cancelled.") -> None:
        """Ask the work to end; the first reason stays."""
        self._end(lambda: Cancelled(reason))

    @contextlib.contextmanager
    def limited(self, seconds: float | None, code: ErrorCode) -> Iterator[None]:
        """End the work with `LimitReached` and `code` if the block takes longer than `seconds`."""
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
        """Sleep for at most `timeout_s`, and return True as soon as the work is asked to end."""
        return self._event.wait(timeout_s)

    def check(self) -> None:
        """Raise `Cancelled`, or `LimitReached`, if the work is asked to end."""
        if self.is_set:
            raise self._cause()
