"""Put together what ran for a build, and when: its time in the queue, and what its worker wrote. Pure."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.state import BuildState
from image_builder.timeline.spans import DONE, STEP, STOPPED, Span, spans_of

QUEUE = "wait in the queue"
SLACK_S = 2.0
"""How far the clocks of a worker and of the database's writers may be apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildTimeline:
    """Describes what ran for one build; times are in seconds since 1970.

    `ended_s` is None while the build goes on; `left_out` counts spans that were too many to keep.
    """

    spans: tuple[Span, ...]
    began_s: float
    ended_s: float | None
    left_out: int = 0


def timeline_of(row: Any, document: Mapping[str, Any] | None) -> BuildTimeline:
    """Return the timeline of a build, whose row `db.builds` selects.

    Without a document of its worker, it is what the states tell. What ran before the build was
    asked for counts, if the build joined it; what ran after its end was for others.
    """
    began_s, ended_s = _seconds(row.created_at), _seconds_of(row.ended_at)
    if _was_there(row):
        return BuildTimeline(spans=(), began_s=began_s, ended_s=ended_s)
    shown = [_queue(row, began_s, ended_s)]
    if row.run_state is not BuildState.PENDING and row.started_at is not None:
        from_s = _seconds(row.started_at) - SLACK_S
        ran = list(_by_states(row)) if document is None else spans_of(document)
        shown += [
            _cut(span, ended_s)
            for span in ran
            if span.began_s >= from_s and (ended_s is None or span.began_s <= ended_s)
        ]
    return BuildTimeline(
        spans=tuple(shown),
        began_s=min(span.began_s for span in shown),
        ended_s=ended_s,
        left_out=int((document or {}).get("left_out", 0)),
    )


def _was_there(row: Any) -> bool:
    """Return whether the image was there when the build was asked for: nothing ran for it."""
    return row.run_ended_at is not None and bool(row.run_ended_at <= row.created_at)


def _queue(row: Any, began_s: float, ended_s: float | None) -> Span:
    queue = Span(kind=STEP, name=QUEUE, began_s=began_s)
    if row.run_state is BuildState.PENDING or row.started_at is None:
        return queue if ended_s is None else queue.ended(ended_s, STOPPED)
    return queue.ended(max(began_s, _seconds(row.started_at)), DONE)


def _by_states(row: Any) -> Iterator[Span]:
    """Yield what the states of a run tell: those of an older service have nothing else."""
    begun = [
        (name, _seconds(at))
        for name, at in (
            ("prepare", row.started_at),
            ("build", row.building_at),
            ("convert to a SIF", row.converting_at),
        )
        if at is not None
    ]
    ends = [at for _, at in begun[1:]] + [_seconds_of(row.ended_at)]
    for (name, at), end in zip(begun, ends, strict=True):
        span = Span(kind=STEP, name=name, began_s=at)
        yield span if end is None else span.ended(max(at, end), DONE)


def _cut(span: Span, ended_s: float | None) -> Span:
    """Return the span as it was when the build ended."""
    if ended_s is None or (span.ended_s is not None and span.ended_s <= ended_s + SLACK_S):
        return span
    return span.ended(max(span.began_s, ended_s), STOPPED)


def _seconds(time: datetime.datetime) -> float:
    return time.timestamp()


def _seconds_of(time: datetime.datetime | None) -> float | None:
    return None if time is None else time.timestamp()
