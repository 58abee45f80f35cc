"""Write how far a build is: the newest figures, and not too often."""

from __future__ import annotations

from collections.abc import Callable

from service.workers.latest_writer import LatestWriter


class ProgressWriter:
    """Passes on the newest figures, at most once in `every_s` seconds, and the end at once."""

    def __init__(self, write: Callable[[int, int, str], None], every_s: float) -> None:
        self._writer: LatestWriter[tuple[int, int, str]] = LatestWriter(
            lambda figures: write(*figures), every_s
        )

    def give(self, done: int, total: int, what: str) -> None:
        """Write a figure now, or in a moment; the end is written at once."""
        self._writer.give((done, total, what), at_once=done >= total)

    def stop(self) -> None:
        """Forget what is not written yet: it is not true any more."""
        self._writer.stop()
