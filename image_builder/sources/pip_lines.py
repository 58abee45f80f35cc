"""Divides a requirements file into its lines and options, as pip does. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

_COMMENT = re.compile(r"(?:^|\s)#")
_FILES = {"-r": "-r", "--requirement": "-r", "-c": "-c", "--constraint": "-c"}
_PLACES = {"-f": "-f", "--find-links": "-f", "-e": "-e", "--editable": "-e"}
WITH_VALUE = ("-i", "--index-url", "--extra-index-url", "--trusted-host", "--no-binary",
              "--only-binary", "--use-feature", "--pypi-url")  # fmt: skip
ALONE = ("--no-index", "--pre", "--prefer-binary", "--require-hashes")
GENERAL = (*_FILES, *_PLACES, *WITH_VALUE, *ALONE)
"""Options of a line of their own."""
SETTINGS = ("--config-settings", "--config-setting", "-C")
BEHIND = ("--hash", "--global-option", "--install-option", *SETTINGS)
"""Options that pip reads behind a requirement."""


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its number as pip reads it: joined, and without comments."""
    parts: list[str] = []
    first = 1
    for number, line in enumerate(text.splitlines(), 1):
        is_comment = line.lstrip().startswith("#")
        if not parts:
            first = number
        if line.endswith("\\") and not is_comment:
            parts.append(line[:-1])
            continue
        whole = "".join([*parts, f" {line}" if is_comment and parts else line])
        parts = []
        if cut := _cut(whole):
            yield first, cut
    if parts and (cut := _cut("".join(parts))):
        yield first, cut


def _cut(line: str) -> str:
    comment = _COMMENT.search(line)
    return (line[: comment.start()] if comment else line).strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """Holds an option and its value; `-r x`, `-rx` and `--requirement=x` are the same.

    `kind` is the letter of the options that name a file or a place, of others nothing.
    """

    name: str
    value: str = ""

    @property
    def kind(self) -> str:
        return {**_FILES, **_PLACES}.get(self.name, "-")[1:]

    @property
    def is_known(self) -> bool:
        return self.name in GENERAL


def options_in(words: list[str]) -> tuple[list[Option], list[str]]:
    """Return the options among words, and the words that belong to none."""
    given: list[Option] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            others.append(word)
            continue
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            name, equals, value = word[:2], word[2:], word[2:]
        if not equals and name in (*_FILES, *_PLACES, *WITH_VALUE, *BEHIND):
            value = next(rest, "")
        given.append(Option(name=name, value=value))
    return given, others


def before_options(line: str) -> tuple[str, list[tuple[str, str]]]:
    """Return a requirement without the options behind it, and those options with their values."""
    words = line.split(" ")
    at = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    options: list[tuple[str, str]] = []
    rest = iter(filter(None, words[at:]))
    for word in rest:
        name, equals, value = word.partition("=")
        if name in BEHIND and not equals:
            value = next(rest, "")
        if word.startswith("-"):
            options.append((name, value))
    return " ".join(words[:at]).strip(), options
