"""Checks the entries of `apt`, `pip` and `smoke`, and says what to write instead. Pure."""

from __future__ import annotations

import re

from packaging.requirements import InvalidRequirement, Requirement

MAX_ENTRY = 300
"""The longest entry, in characters; its length is checked before any pattern reads it."""
MAX_WORD = 16_000
"""The longest word of a command, in characters; a word may be a small program."""
_APT = re.compile(
    r"[a-z0-9][a-z0-9.+-]*[a-z0-9+](?::[a-z0-9-]+)?(?:=[A-Za-z0-9][A-Za-z0-9.+:~*-]*)?\Z"
)
_SINGLE_EQUALS = re.compile(
    r"(?P<name>[A-Za-z0-9._\[\],-]+)\s*=\s*(?P<version>[0-9][A-Za-z0-9.*]*)"
)


def short(text: str) -> str:
    """Return how a message shows a text: quoted, and cut."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def apt_problem(text: str) -> tuple[str, str] | None:
    """Return what is wrong with an entry under `apt`, and what to write instead."""
    if len(text) > MAX_ENTRY or not _APT.match(text):
        return (
            f"{short(text)} is not a Debian package",
            "Write its name, perhaps with =version, such as libgsl-dev.",
        )
    return None


def pip_problem(text: str) -> tuple[str, str] | None:
    """Return what is wrong with an entry under `pip`, and what to write instead."""
    if len(text) > MAX_ENTRY:
        return (
            f"{short(text)} is longer than {MAX_ENTRY} characters",
            "Write name, name==1.2 or name[extra]>=1.2.",
        )
    if text.startswith("-"):
        return (
            f"{short(text)} is an option of pip",
            "Write packages only, or a requirements.txt in the step's folder.",
        )
    if "://" in text or " @ " in text or "/" in text.split(";")[0]:
        return (
            f"{short(text)} is not a package's name",
            "Write name==version; a requirements.txt or post_inst.sh may install from elsewhere.",
        )
    return requirement_problem(text)


def requirement_problem(text: str) -> tuple[str, str] | None:
    """Return why pip would not read a requirement of at most `MAX_ENTRY` characters."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return f"{short(text)} is not a Python requirement", _requirement_hint(text)
    if requirement.url is not None and not text.isascii():
        return f"{short(text)} is not a Python requirement", "Write plain letters."
    return None


def _requirement_hint(text: str) -> str:
    if match := _SINGLE_EQUALS.match(text):
        return f"Write {match['name']}=={match['version']}."
    if text.split(None, 1)[0] in ("import", "from"):
        return "Write the names of packages, one a line, not Python's import."
    words = text.split(";")[0].split()
    if len(words) > 1 and all(word.isidentifier() for word in words[:2]):
        return f"Write each package in an entry of its own: {words[0]}, {words[1]}."
    return "Write name, name==1.2 or name[extra]>=1.2."


def smoke_problem(text: str) -> tuple[str, str] | None:
    """Return what is wrong with a word of the `smoke` command, and what to do."""
    if len(text) > MAX_WORD or any(ord(letter) < 32 for letter in text):
        return (
            "a word of the command is very long, or holds a line end or control character",
            "Put the command into a script.",
        )
    return None
