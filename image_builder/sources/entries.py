"""Checks the entries of `apt`, `pip` and `smoke`, and says what to write instead. Pure."""

from __future__ import annotations

import re

from packaging.requirements import InvalidRequirement, Requirement

from image_builder.spack.spec_syntax import character_problem

MAX_ENTRY = 300
"""The longest entry, in characters; its length is checked before any pattern reads it."""
MAX_WORD = 16_000
"""The longest word of a command, in characters; a word may be a small program."""
_APT = re.compile(
    r"[a-z0-9][a-z0-9.+-]*[a-z0-9+](?::[a-z0-9-]+)?(?:=[A-Za-z0-9][A-Za-z0-9.+:~*-]*)?\Z"
)
_NEARLY_APT = re.compile(r"(?P<name>[a-z0-9.+-]+)\s*(?:==|@|=)\s*(?P<version>[A-Za-z0-9.+:~*-]+)")
_SUITE = re.compile(r"(?P<name>[a-z0-9.+-]+)/[a-z-]+")
_VERSION = re.compile(r"v?\d[\w.*]*")
_NO_PACKAGES = frozenset({"python", "python3"})
_SINGLE_EQUALS = re.compile(
    r"(?P<name>[A-Za-z0-9._\[\],-]+)\s*=\s*(?P<version>[0-9][A-Za-z0-9.*]*)"
)


def short(text: str) -> str:
    """Return how a message shows a text: quoted, and cut."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def apt_problem(text: str) -> tuple[str, str] | None:
    """Return what is wrong with an entry under `apt`, and what to write instead."""
    if len(text) > MAX_ENTRY or not _APT.match(text):
        return _odd(text) or (f"{short(text)} is not a Debian package", _apt_hint(text[:MAX_ENTRY]))
    return None


def _odd(text: str) -> tuple[str, str] | None:
    """Return which character of a text is none of a name, though it may look like one."""
    odd = character_problem(text)
    return (f"{short(text)} {odd.problem}", odd.hint) if odd is not None else None


def _apt_hint(text: str) -> str:
    words = re.split(r"[\s,;]+", text)
    if len(words) > 1 and all(map(_APT.match, words)):
        return f"Write each package in an entry of its own: {', '.join(words)}."
    if match := _NEARLY_APT.fullmatch(text):
        return f"Write {match['name']}={match['version']}."
    if match := _SUITE.fullmatch(text):
        return f"Write {match['name']}: packages are those of the image's own distribution."
    if _APT.match(text.lower()):
        return f"Write {text.lower()}."
    return "Write its name, perhaps with =version, such as libgsl-dev."


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
    problem = requirement_problem(text)
    if problem is None and Requirement(text).url is not None:
        return f"{short(text)} is not a package's name", "Write name==version."
    return problem


def requirement_problem(text: str) -> tuple[str, str] | None:
    """Return why pip would not read a requirement of at most `MAX_ENTRY` characters."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return _odd(text) or (f"{short(text)} is not a Python requirement", _requirement_hint(text))
    if requirement.url is not None and not text.isascii():
        return f"{short(text)} is not a Python requirement", "Write plain letters."
    if requirement.url is not None and _VERSION.fullmatch(requirement.url):
        hint = f"Write {requirement.name}=={requirement.url.removeprefix('v')}."
        return f"{short(text)} is not a Python requirement", hint
    if text.split(";")[0].rstrip(") ").endswith(","):
        return f"{short(text)} ends with a comma", "Leave it out."
    if not requirement.name[-1].isalnum():
        hint = f"Write {requirement.name.rstrip('-_.')}."
        return f"{short(text)} is not a Python requirement", hint
    if requirement.name.lower() in _NO_PACKAGES:
        hint = "Leave it out: the image has its own Python, and another one comes by Spack."
        return f"{short(text)} is no package that pip installs", hint
    return None


def _requirement_hint(text: str) -> str:
    if match := _SINGLE_EQUALS.match(text):
        return f"Write {match['name']}=={match['version']}."
    if text.split(None, 1)[0] in ("import", "from"):
        return "Write the names of packages, one a line, not Python's import."
    if text[0] in "'\"":
        return "Leave the quotes out."
    if re.search(r"[<>~]=?\s*[\w.]+\.\*", text):
        return "Write .* behind == and != alone, and name>=1 in place of name>=1.*."
    words = text.split(";")[0].split()
    if len(words) == 2 and words[0].isidentifier() and _VERSION.fullmatch(words[1]):
        return f"Write {words[0]}=={words[1].removeprefix('v')}."
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
