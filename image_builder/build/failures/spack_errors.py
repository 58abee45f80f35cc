"""Knows how Spack's own error messages begin, and whether one is about a source. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from image_builder.build.failures.excerpts import first_match

ERROR = "==> Error:"
_GOES_ON = re.compile(r"==> Error: spack requires 'curl'")
"""Spack 0.19 says so and fetches without it."""
_FETCH = re.compile(
    r"FetchError|All fetchers failed|URLError|NoStageError|NoDigestError|manual download required"
)


def from_error(lines: Sequence[str]) -> Sequence[str]:
    """Return the lines from Spack's first error on that ended something."""
    place = next((n for n, line in enumerate(lines) if _is_error(line)), None)
    return () if place is None else lines[place:]


def _is_error(line: str) -> bool:
    return line.startswith(ERROR) and not _GOES_ON.match(line)


def first_error(lines: Sequence[str]) -> str:
    return next((line.removeprefix(ERROR).strip() for line in lines if _is_error(line)), "")


def is_fetch(lines: Sequence[str]) -> bool:
    return bool(first_match(_FETCH, lines))
