"""A step that fills a disk is ended while there is room to end it in."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_builder.errors import Cancelled, ErrorCode, NoSpace
from image_builder.host import disk_guard
from image_builder.host.cancellation import CancelToken
from image_builder.host.disk_guard import DiskGuard
from image_builder.host.process import Command, run
from image_builder.host.step_writers import StepCommand, StepWriters

Usage = namedtuple("Usage", "total used free")
GB = 10**9


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Say how much room a fake disk has; the others have enough."""
    room: dict[str, int] = {}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(100 * GB, 0, room.get(str(path), 50 * GB))
    )
    monkeypatch.setattr(disk_guard, "_ended_at", float("-inf"))
    monkeypatch.setattr(disk_guard, "EVERY_S", 0.0)
    return room.__setitem__


def guard(cancel: CancelToken | None = None, **more: Any) -> DiskGuard:
    return DiskGuard(
        cancel or CancelToken(), [Path("/work"), Path("/docker")], min_free_bytes=1 * GB, **more
    )


@pytest.mark.parametrize("disk", ["/work", "/docker"])
def test_a_command_that_fills_a_disk_is_ended(free: Callable[[str, int], None], disk: str) -> None:
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        free(disk, 1 * GB - 1)

    command = Command(name="step", argv=("sh", "-c", "echo filling; sleep 600"), timeout_s=60)
    with pytest.raises(NoSpace, match=f"disk of {disk}") as failure:
        run(command, on_line=hear, cancel=guard())
    assert said == ["filling"] and failure.value.code is ErrorCode.NO_SPACE


def test_what_has_room_goes_on(free: Callable[[str, int], None]) -> None:
    free("/work", 1 * GB)
    run(Command(name="step", argv=("sleep", "0.3")), cancel=guard())


def test_one_build_is_ended_and_others_get_its_room(free: Callable[[str, int], None]) -> None:
    free("/docker", 0)
    one, other = guard(), guard()
    for watching in (one, other):
        watching.check()
    with pytest.raises(NoSpace):
        one.check()
    other.check()


class FakeWriters(StepWriters):
    """Says what it is told to say."""

    def __init__(self, *said: StepCommand | None) -> None:
        super().__init__()
        self._said = list(said)

    def busiest(self) -> StepCommand | None:
        return self._said.pop(0)


ONE, OTHER = ("sh", "/run/cic/post_install.sh", "/one"), ("sh", "/run/cic/install.sh")


def test_the_build_is_ended_whose_step_writes(free: Callable[[str, int], None]) -> None:
    free("/docker", 0)
    other = guard(steps=[OTHER], writers=FakeWriters(None, ONE, ONE))
    one = guard(steps=[ONE, OTHER], writers=FakeWriters(None, ONE))
    for _ in range(3):
        other.check()
    one.check()
    with pytest.raises(NoSpace):
        one.check()


def test_others_get_only_some_time_to_end_it(
    free: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What writes may belong to no build of this service, or hide what it is."""
    free("/docker", 0)
    other = guard(steps=[OTHER], writers=FakeWriters(None, ONE, ONE))
    other.check()
    other.check()
    monkeypatch.setattr(disk_guard, "PATIENCE_S", 0.0)
    with pytest.raises(NoSpace):
        other.check()


def test_without_counters_whoever_notices_ends(free: Callable[[str, int], None]) -> None:
    free("/docker", 0)
    other = guard(steps=[OTHER], writers=FakeWriters(None, None))
    other.check()
    with pytest.raises(NoSpace):
        other.check()


def test_a_cancel_is_still_a_cancel(free: Callable[[str, int], None]) -> None:
    free("/docker", 0)
    cancel = CancelToken()
    watching = guard(cancel)
    assert not watching.is_set
    watching.cancel("enough")
    assert cancel.is_set and watching.is_set and watching.wait(0)
    with pytest.raises(Cancelled, match="enough"):
        watching.check()
