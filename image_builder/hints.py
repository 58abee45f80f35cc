"""Says what to do next about a failure that has no hint of its own.

The facts are in `data/hints.yaml`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from image_builder.data import facts_of
from image_builder.errors import ErrorCode


class Sign(NamedTuple):
    """Describes words in the lines of a failure that say more than its code."""

    codes: frozenset[ErrorCode]
    says: re.Pattern[str]
    hint: str


def usual(code: ErrorCode) -> str:
    """Return what usually helps against a cause."""
    return str(_facts()["codes"][code.value])


def seen_in(code: ErrorCode, lines: Iterable[str]) -> str:
    """Return what the lines of a failure say to do, or nothing."""
    signs = [sign for sign in _signs() if code in sign.codes]
    if not signs:
        return ""
    known = [line[:2000] for line in lines]
    return next((sign.hint for sign in signs if any(map(sign.says.search, known))), "")


def _facts() -> dict[str, Any]:
    return facts_of("hints")


@functools.cache
def _signs() -> tuple[Sign, ...]:
    return tuple(
        Sign(
            frozenset(map(ErrorCode, row["codes"])),
            re.compile(row["says"], re.IGNORECASE),
            row["hint"],
        )
        for row in _facts()["signs"]
    )
