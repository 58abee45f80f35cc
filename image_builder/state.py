"""Defines the six states of a build and the moves between them.

The names are the API's statuses; existing clients poll until one of `TERMINAL`.
"""

from __future__ import annotations

import enum


class BuildState(str, enum.Enum):
    """Says how far a build is, as clients see it."""

    PENDING = "PENDING"
    STARTED = "STARTED"
    BUILDING = "BUILDING"
    CONVERTING = "CONVERTING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"


TERMINAL = frozenset({BuildState.FINISHED, BuildState.FAILED})
ACTIVE = frozenset(BuildState) - TERMINAL

ALLOWED_MOVES: dict[BuildState, frozenset[BuildState]] = {
    BuildState.PENDING: frozenset({BuildState.STARTED, BuildState.FAILED, BuildState.FINISHED}),
    BuildState.STARTED: frozenset(
        {
            BuildState.BUILDING,
            BuildState.CONVERTING,
            BuildState.FINISHED,
            BuildState.FAILED,
            BuildState.PENDING,
        }
    ),
    BuildState.BUILDING: frozenset(
        {BuildState.CONVERTING, BuildState.FINISHED, BuildState.FAILED, BuildState.PENDING}
    ),
    BuildState.CONVERTING: frozenset({BuildState.FINISHED, BuildState.FAILED, BuildState.PENDING}),
    BuildState.FINISHED: frozenset(),
    BuildState.FAILED: frozenset(),
}
"""Which state may follow which; back to PENDING goes a run that lost its worker."""


def may_move(current: BuildState, new: BuildState) -> bool:
    """Return whether a build may go from `current` to `new`."""
    return new in ALLOWED_MOVES[current]
