"""Defines what a build reports while it runs, in four calls."""

from __future__ import annotations

from typing import Protocol

from image_builder.state import BuildState
from image_builder.timeline.spans import Span


class Observer(Protocol):
    """Watches one build, for a service's worker or for a terminal."""

    def entered(self, state: BuildState) -> None:
        """Note that the build entered `state` (STARTED, BUILDING or CONVERTING)."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Note that `done` of `total` units are complete.

        `what` names the present one, such as `openmpi@4.1.6`.
        """

    def line(self, text: str) -> None:
        """Take one line of output, which is already free of secrets and has no line end."""

    def span(self, span: Span) -> None:
        """Note that a part of the build began, or that one which was reported has ended."""


class SilentObserver:
    """Ignores everything that a build reports."""

    def entered(self, state: BuildState) -> None:
        pass

    def progress(self, done: int, total: int, what: str) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def span(self, span: Span) -> None:
        pass
