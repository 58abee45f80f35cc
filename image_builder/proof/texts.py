"""Bounds and cleans texts that an image's files hold, before a document repeats them. Pure."""

from __future__ import annotations

import re

MAX_TEXT = 300
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def plain(text: str, *, most: int = MAX_TEXT) -> str:
    """Return a text of one line without control characters, cut at `most` characters."""
    return _CONTROL.sub(" ", text[: 4 * most]).strip()[:most]


def header_fields(text: str) -> dict[str, str]:
    """Return the fields of a block of `Name: value` lines up to the first empty line.

    The first field of a name counts; continued lines are left out.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            break
        name, colon, value = line.partition(":")
        if colon and not line[:1].isspace():
            fields.setdefault(name, value.strip())
    return fields
