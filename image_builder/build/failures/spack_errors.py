"""How Spack's own error messages begin, and whether one is about a source. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from image_builder.build.failures.excerpts import first_match

ERROR = "==> Error:"
_FETCH = re.compile(r"FetchError|All fetchers failed|URLError|NoStageError|NoDigestError")


def from_error(lines: Sequence[str]) -> Sequence[str]:
    """From Spack's first error on."""
    place = next((n for n, line in enumerate(lines) if line.startswith(ERROR)), None)
    return () if place is None else lines[place:]


def first_error(lines: Sequence[str]) -> str:
    return next((line.removeprefix(ERROR).strip() for line in lines if line.startswith(ERROR)), "")


def is_fetch(lines: Sequence[str]) -> bool:
    return bool(first_match(_FETCH, lines))
