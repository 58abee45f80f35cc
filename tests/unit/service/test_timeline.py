"""A build's timeline: which parts of its run are its own, and where they are drawn."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import random
from typing import Any

import pytest

from image_builder.state import BuildState
from image_builder.timeline.spans import BUILT, DONE, LAYER, PACKAGE, STEP, STOPPED, Span, Timeline
from service.timeline import QUEUE, BuildTimeline, timeline_of
from service.web.timeline_drawing import MAX_ROWS, MIN_WIDTH, WIDTH, draw

BEGIN = datetime.datetime(2026, 11, 29, 12, 0, tzinfo=datetime.timezone.utc)


@dataclasses.dataclass(kw_only=True)
class Row:
    """A build with its run, as the database tells them; a fake, as rows have no constructor."""

    created_at: datetime.datetime
    own_state: BuildState | None = None
    run_state: BuildState = BuildState.BUILDING
    started_at: datetime.datetime | None = None
    building_at: datetime.datetime | None = None
    converting_at: datetime.datetime | None = None
    run_ended_at: datetime.datetime | None = None
    ended_at: datetime.datetime | None = None


def at(seconds: float) -> datetime.datetime:
    return BEGIN + datetime.timedelta(seconds=seconds)


def step(name: str, began: float, ended: float | None) -> Span:
    span = Span(kind=STEP, name=name, began_s=at(began).timestamp())
    return span if ended is None else span.ended(at(ended).timestamp(), DONE)


def told(row: Row, *ran: Span) -> dict[str, tuple[float, float | None, str | None]]:
    """The spans of a build, in seconds from the beginning of the test."""
    timeline = Timeline()
    for span in ran:
        timeline.add(span)
    shown = timeline_of(row, timeline.document() if ran else None)
    zero = BEGIN.timestamp()
    return {
        span.name: (
            span.began_s - zero,
            None if span.ended_s is None else span.ended_s - zero,
            span.outcome,
        )
        for span in shown.spans
    }


def test_a_build_that_waits_has_a_queue_alone() -> None:
    row = Row(created_at=at(0), run_state=BuildState.PENDING)
    assert told(row) == {QUEUE: (0, None, None)}
    # It was begun before, and waits again: what ran then is thrown away.
    assert told(row, step("prepare", 5, 6)) == {QUEUE: (0, None, None)}


def test_what_an_earlier_attempt_ran_does_not_count() -> None:
    row = Row(created_at=at(0), started_at=at(100))
    assert told(row, step("prepare", 5, 6), step("again", 101, None)) == {
        QUEUE: (0, 100, DONE),
        "again": (101, None, None),
    }


def test_who_joins_sees_what_ran_before_and_nothing_of_later() -> None:
    row = Row(
        created_at=at(50),
        started_at=at(10),
        ended_at=at(70),
        own_state=BuildState.FAILED,
    )
    assert told(row, step("prepare", 10, 20), step("install", 20, 90), step("push", 90, 95)) == {
        QUEUE: (50, 50, DONE),
        "prepare": (10, 20, DONE),
        "install": (20, 70, STOPPED),
    }


def test_an_image_that_was_there_ran_nothing() -> None:
    row = Row(
        created_at=at(50),
        started_at=at(10),
        run_ended_at=at(40),
        ended_at=at(50),
        own_state=BuildState.FINISHED,
        run_state=BuildState.FINISHED,
    )
    assert told(row, step("prepare", 10, 20)) == {}


def test_the_states_stand_in_for_a_document_that_is_missing() -> None:
    row = Row(
        created_at=at(0),
        started_at=at(1),
        building_at=at(2),
        converting_at=at(8),
        ended_at=at(9),
        run_state=BuildState.FINISHED,
    )
    assert told(row) == {
        QUEUE: (0, 1, DONE),
        "prepare": (1, 2, DONE),
        "build": (2, 8, DONE),
        "convert to a SIF": (8, 9, DONE),
    }


def timeline(*spans: Span, ended: float | None = 100.0) -> BuildTimeline:
    return BuildTimeline(spans=spans, began_s=0.0, ended_s=ended)


def test_bars_of_a_kind_never_overlap_and_lie_in_the_drawing() -> None:
    chance = random.Random(7)
    spans = [
        Span(kind=kind, name=f"{kind}-{number}", began_s=begin).ended(begin + took, BUILT)
        for number in range(60)
        for kind in (STEP, LAYER, PACKAGE)
        for begin, took in [(chance.uniform(0, 90), chance.uniform(0, 10))]
    ]
    spans.sort(key=lambda span: span.began_s)
    drawing = draw(timeline(*spans), 0.0)
    assert len(drawing.bars) == len(spans) and drawing.totals == {BUILT: 60}
    for one, other in itertools.combinations(drawing.bars, 2):
        if one.y == other.y:
            first, second = sorted((one, other), key=lambda bar: bar.span.began_s)
            assert first.span.ended_s is not None
            assert first.span.ended_s <= second.span.began_s
            assert first.span.kind == second.span.kind
    for bar in drawing.bars:
        assert 0 <= bar.x <= WIDTH - MIN_WIDTH and MIN_WIDTH <= bar.width <= WIDTH
        assert 0 <= bar.y < drawing.height


def test_what_goes_on_lasts_until_now() -> None:
    drawing = draw(timeline(Span(kind=STEP, name="install", began_s=50.0), ended=None), 200.0)
    (bar,) = drawing.bars
    assert (bar.x, bar.width, bar.seconds, drawing.seconds) == (250, 750, 150.0, 200.0)


@pytest.mark.parametrize("ended", [0.0, None])
def test_a_build_that_took_no_time_is_drawn(ended: float | None) -> None:
    spans: Any = [Span(kind=STEP, name="a", began_s=0.0).ended(0.0, DONE)]
    assert draw(timeline(*spans, ended=ended), 0.0).bars[0].width >= MIN_WIDTH


def test_the_longest_get_a_row_and_every_step_does() -> None:
    steps = [Span(kind=STEP, name="s", began_s=float(n)).ended(float(n), DONE) for n in range(5)]
    packages = [
        Span(kind=PACKAGE, name=str(n), began_s=0.0).ended(n / 100, BUILT) for n in range(MAX_ROWS)
    ]
    drawing = draw(timeline(*steps, *packages), 0.0)
    assert len(drawing.rows) == MAX_ROWS and drawing.left_out == 5
    kept = {bar.span.name for bar in drawing.rows}
    assert "s" in kept and str(MAX_ROWS - 1) in kept and "0" not in kept
