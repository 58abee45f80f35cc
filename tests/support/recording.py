"""Record what an observer receives."""

from __future__ import annotations

import dataclasses

from image_builder.state import BuildState
from image_builder.timeline.spans import Span


@dataclasses.dataclass
class Heard:
    """What a build reported, in its order; printed too, so that a failing test shows it."""

    lines: list[str] = dataclasses.field(default_factory=list)
    states: list[BuildState] = dataclasses.field(default_factory=list)
    done: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)
    spans: list[Span] = dataclasses.field(default_factory=list)

    def entered(self, state: BuildState) -> None:
        self.states.append(state)

    def progress(self, done: int, total: int, what: str) -> None:
        self.done.append((done, total, what))

    def line(self, text: str) -> None:
        self.lines.append(text)
        print(text)

    def span(self, span: Span) -> None:
        self.spans.append(span)
