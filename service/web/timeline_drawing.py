"""Lay out a timeline: a bar for each span, and the lanes in which bars do not overlap. Pure.

Lengths are thousandths of the drawing's width, since it is as wide as the window lets it be.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from image_builder.timeline.spans import LAYER, PACKAGE, STEP, Span
from service.timeline import BuildTimeline

WIDTH = 1000
LANE_HEIGHT, BAR_HEIGHT, GROUP_GAP = 12, 9, 5
MIN_WIDTH = 2
"""What is shorter would not be seen."""
MAX_LANES = 40
"""How many lanes of a kind are drawn: more packages than that are never installed side by side."""
MAX_ROWS = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """Describes where a span is drawn."""

    span: Span
    x: int
    width: int
    y: int
    seconds: float

    @property
    def label(self) -> str:
        """Return what the bar stands for."""
        return label_of(self.span)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """Describes a drawn timeline: bars in lanes, and the rows of the table.

    `left_out` counts the rows that the table does not have; `totals` says how many packages came
    from where, by their outcome.
    """

    bars: tuple[Bar, ...]
    rows: tuple[Bar, ...]
    height: int
    seconds: float
    left_out: int
    totals: Mapping[str, int]


def draw(shown: BuildTimeline, now_s: float) -> Drawing:
    """Return the drawing of a timeline; what goes on lasts until `now_s`."""
    last_s = shown.ended_s or max([now_s, *(span.ended_s or 0 for span in shown.spans)])
    whole_s = max(last_s - shown.began_s, 0.001)
    every: list[Bar] = []
    drawn: list[Bar] = []
    top = 0
    for kind in (STEP, LAYER, PACKAGE):
        of_kind = [span for span in shown.spans if span.kind == kind]
        lanes = _lanes(of_kind, last_s)
        bars = [
            _bar(span, top + lane * LANE_HEIGHT, shown.began_s, whole_s, last_s)
            for span, lane in zip(of_kind, lanes, strict=True)
        ]
        every += bars
        drawn += [bar for bar, lane in zip(bars, lanes, strict=True) if lane < MAX_LANES]
        if lanes:
            top += min(max(lanes) + 1, MAX_LANES) * LANE_HEIGHT + GROUP_GAP
    kept = _longest(every)
    return Drawing(
        bars=tuple(drawn),
        rows=tuple(sorted(kept, key=lambda bar: (bar.span.began_s, bar.y))),
        height=max(top, LANE_HEIGHT),
        seconds=whole_s,
        totals=Counter(
            span.outcome for span in shown.spans if span.kind == PACKAGE and span.outcome
        ),
        left_out=len(every) - len(kept) + shown.left_out,
    )


def label_of(span: Span) -> str:
    """Return a span's name, with the version of a package."""
    return f"{span.name}@{span.version}" if span.version else span.name


def _lanes(spans: Iterable[Span], last_s: float) -> list[int]:
    """Return the lane of each span, the first in which nothing goes on when it begins."""
    free_at: list[float] = []
    lanes = []
    for span in spans:
        end = last_s if span.ended_s is None else span.ended_s
        lane = next((n for n, at in enumerate(free_at) if at <= span.began_s), len(free_at))
        if lane == len(free_at):
            free_at.append(end)
        else:
            free_at[lane] = end
        lanes.append(lane)
    return lanes


def _bar(span: Span, y: int, began_s: float, whole_s: float, last_s: float) -> Bar:
    end_s = last_s if span.ended_s is None else span.ended_s
    width = max(MIN_WIDTH, round((end_s - span.began_s) / whole_s * WIDTH))
    x = round((span.began_s - began_s) / whole_s * WIDTH)
    return Bar(
        span=span,
        x=max(0, min(x, WIDTH - MIN_WIDTH)),
        width=min(width, WIDTH),
        y=y,
        seconds=max(0.0, end_s - span.began_s),
    )


def _longest(bars: list[Bar]) -> list[Bar]:
    """Return the bars that get a row: every step, and of the others those that took longest."""
    return sorted(bars, key=lambda bar: (bar.span.kind != STEP, -bar.seconds))[:MAX_ROWS]
