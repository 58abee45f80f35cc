"""Decide when a notice is tried again: after seconds at first, after hours at last. Pure."""

from __future__ import annotations

PAUSES_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 36000.0)
"""The pauses after each try; after the last of them, and one more try, a notice is given up. In all
it is tried for more than a day.
"""
JITTER = 0.2
"""Each pause is longer by up to this part, so that what failed together comes back apart."""
MAX_ASKED_S = 3600.0
"""The longest pause that a receiver may ask for (`Retry-After`)."""
MAX_TRIES = len(PAUSES_S) + 1


def pause_s(tries: int, chance: float, asked_s: float = 0.0) -> float | None:
    """Return how long to wait after so many tries; None after the last one.

    `chance` is a number from 0 to 1.
    """
    if tries >= MAX_TRIES:
        return None
    return max(PAUSES_S[tries - 1] * (1 + JITTER * chance), min(asked_s, MAX_ASKED_S))
