"""Reads versions as numbers. Pure."""

from __future__ import annotations

import re

Version = tuple[int, ...]


def numbers(text: str) -> Version:
    """Return the numbers of a version, to compare: `570.26` becomes `(570, 26)`."""
    return tuple(map(int, re.findall(r"\d+", text)))
