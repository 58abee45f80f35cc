"""Reports everything that is wrong with a file at once. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from image_builder.errors import BadDescription, ErrorCode

MAX_SHOWN = 20


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    """Says what is wrong in one line of a file, and what to write there."""

    line: int
    text: str
    hint: str


def raise_all(
    problems: Iterable[Problem], file: str, code: ErrorCode = ErrorCode.BAD_DESCRIPTION
) -> None:
    """Raise one `BadDescription` with every problem and its line; do nothing without any."""
    ordered = sorted(dict.fromkeys(problems))
    if not ordered:
        return
    first, others = ordered[0], ordered[1:]
    if not others:
        raise BadDescription(first.text, file=file, line=first.line, hint=first.hint, code=code)
    lines = [f"line {one.line}: {one.text} ({one.hint})" for one in others[: MAX_SHOWN - 1]]
    if len(ordered) > MAX_SHOWN:
        lines.append(f"and {len(ordered) - MAX_SHOWN} more")
    raise BadDescription(
        f"{first.text} ({first.hint}); " + "; ".join(lines),
        file=file,
        line=first.line,
        hint="Correct every line named.",
        code=code,
    )
