"""Picks the lines that matter out of a log. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, overload

from image_builder.errors import ErrorCode

MAX_LINES = 40
"""The longest excerpt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Holds what one reader of a log found.

    `excerpt` is for people, `evidence` all that belongs to the failure.
    """

    code: ErrorCode
    message: str
    package: str = ""
    hint: str = ""
    excerpt: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


def found(
    code: ErrorCode,
    message: str,
    *,
    package: str = "",
    hint: str = "",
    excerpt: tuple[str, ...] = (),
    evidence: tuple[str, ...] = (),
) -> Finding:
    return Finding(
        code=code, message=message, package=package, hint=hint, excerpt=excerpt, evidence=evidence
    )


@overload
def first_match(pattern: re.Pattern[str], lines: Sequence[str]) -> str: ...


@overload
def first_match(
    pattern: re.Pattern[str], lines: Sequence[str], *, groups: Literal[True]
) -> re.Match[str] | None: ...


def first_match(
    pattern: re.Pattern[str], lines: Sequence[str], *, groups: bool = False
) -> str | re.Match[str] | None:
    """Return the first line that has `pattern`, or an empty text.

    With `groups` return the match itself, or None.
    """
    match = next((match for line in lines if (match := pattern.search(line))), None)
    if groups:
        return match
    return match.string if match else ""


def tail(lines: Sequence[str], count: int = 25) -> tuple[str, ...]:
    """Return the last lines that are not empty."""
    return tuple([line for line in lines if line.strip()][-count:])


def around(lines: Sequence[str], line: str, before: int = 12, after: int = 6) -> tuple[str, ...]:
    """Return `line` where it first occurs, with its neighbours; nothing when it does not occur."""
    if line not in lines:
        return ()
    place = list(lines).index(line)
    return tuple(text for text in lines[max(0, place - before) : place + after + 1] if text.strip())
