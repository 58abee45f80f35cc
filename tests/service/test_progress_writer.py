"""How often progress is written, and that the newest word of it is."""

from __future__ import annotations

import threading
import time

import pytest

from service.workers.progress_writer import ProgressWriter

Progress = tuple[int, int, str]


class Written:
    """What was written, with a way to wait for it."""

    def __init__(self) -> None:
        self.words: list[Progress] = []
        self._changed = threading.Condition()

    def __call__(self, *word: object) -> None:
        with self._changed:
            self.words.append(word)  # type: ignore[arg-type]
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[Progress]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.words) >= count, timeout=30)
            return list(self.words)


def test_a_long_step_is_told_though_it_came_right_after_another() -> None:
    written = Written()
    writer = ProgressWriter(written, 0.2)
    for phase in ("staging", "configure", "build"):
        writer.give(0, 2, phase)
    assert written.words == [(0, 2, "staging")]
    assert written.wait_for(2) == [(0, 2, "staging"), (0, 2, "build")]


def test_the_end_is_told_at_once() -> None:
    written = Written()
    writer = ProgressWriter(written, 3600)
    writer.give(0, 2, "build")
    writer.give(1, 2, "install")
    writer.give(2, 2, "installed")
    assert written.words == [(0, 2, "build"), (2, 2, "installed")]


def test_nothing_is_told_after_the_build_went_on() -> None:
    written = Written()
    writer = ProgressWriter(written, 0.1)
    writer.give(0, 2, "build")
    writer.give(1, 2, "install")
    writer.stop()
    time.sleep(0.3)
    assert written.words == [(0, 2, "build")]


def test_a_database_that_is_away_later_ends_no_thread_with_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = threading.Event()

    def write(done: int, total: int, what: str) -> None:
        if done:
            told.set()
            raise OSError("away")

    writer = ProgressWriter(write, 0.1)
    writer.give(0, 2, "build")
    writer.give(1, 2, "install")
    assert told.wait(30)
    writer.stop()
    assert "what is newest was not written" in caplog.text
