"""Checks line by line what programs of the full image report for its slim one.

They run after a description's code ran in that image, and root uses what they print in a step that
sees what other users' builds see. So nothing but these shapes passes, wherever it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from image_builder.recipe.slim import SlimFailed

MAX_BYTES = 4 * 1024**2
"""Largest file that is read; a Debian with every package has 60,000 lines of 50 bytes."""
MAX_LINE = 2000
_SHOWN = 80

_PACKAGE = r"[a-z0-9][a-z0-9+.-]+:[a-z0-9-]+"
_VERSION = r"[0-9][A-Za-z0-9.+:~-]*"
_PATH = r"/(?!\.\.?(?:/|\Z))[!-~]*"
_USER = r"[A-Za-z_][A-Za-z0-9_.-]*\$?"
_NUMBER = r"[0-9]{1,10}"
_WORD = r"[!-9;-~]*"
_SHAPES = {
    "packages": re.compile(rf"{_PACKAGE} {_VERSION}"),
    "versions": re.compile(rf"{_PACKAGE} {_VERSION}"),
    "alternatives": re.compile(rf"[A-Za-z0-9][A-Za-z0-9+._-]* (?:auto|manual) {_PATH}"),
    "passwd": re.compile(rf"{_USER}:{_WORD}:{_NUMBER}:{_NUMBER}:[^:]*:(?:{_PATH})?:(?:{_PATH})?"),
    "group": re.compile(rf"{_USER}:{_WORD}:{_NUMBER}:{_WORD}"),
    "shadow": re.compile(rf"{_USER}:{_WORD}(?::[0-9-]*){{6}}:[0-9]*"),
    "gshadow": re.compile(rf"{_USER}:{_WORD}:{_WORD}:{_WORD}"),
}
NAMES = tuple(_SHAPES)


def checked(files: Mapping[str, bytes], *, apt: Collection[str]) -> dict[str, str]:
    """Return the texts of the known files, after a check that each line has its shape.

    `apt` is what the description asks for, which may be virtual packages. Raises `SlimFailed`.
    """
    return {
        name: "".join(f"{line}\n" for line in _lines(name, files[name], frozenset(apt)))
        for name in NAMES
        if name in files
    }


def _lines(name: str, content: bytes, asked: frozenset[str]) -> list[str]:
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise SlimFailed(f"What the image tells of its {name} is no text.") from None
    for line in filter(None, lines):
        if not _is_good(name, line) and not (name == "packages" and line in asked):
            raise SlimFailed(
                f"What the image tells of its {name} holds a line that cannot be: "
                f"{line[:_SHOWN]!a}."
            )
    return [line for line in lines if line]


def _is_good(name: str, line: str) -> bool:
    return (
        len(line) <= MAX_LINE
        and line.isprintable()
        and _SHAPES[name].fullmatch(line) is not None
        and "/../" not in f"{line}/"
    )
