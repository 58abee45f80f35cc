"""Reads YAML from strangers: plain values with line numbers, or every reason why not. Pure.

It takes linear time for any text. Tags, duplicate keys, several documents, aliases that multiply and
deep nesting are refused before any value is made of them.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from image_builder.errors import BadDescription
from image_builder.spack.spec_syntax import SpecError, character_problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_VALUES = 20_000
"""The most values in a document, each counted as often as aliases repeat it."""

Path = tuple[str | int, ...]
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.SafeLoader("")
_HIDDEN = ("Zs", "Cf")
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """Holds a text's value, and the line of each of its parts."""

    value: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """Return the line of what `path` names, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def load(text: str, file: str) -> Document:
    """Return the one document in `text`: mappings, lists, texts, numbers, booleans and None.

    A number is returned as its text if it would not be written back the same (`1.10`). Raises
    `BadDescription`.
    """
    _check_text(text, file)
    builder = _Builder(file)
    try:
        value = builder.document(yaml.parse(text, Loader=_PARSER))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, file) from None
    except yaml.YAMLError as error:
        raise BadDescription(f"is not valid YAML: {error}"[:300], file=file) from None
    return Document(value=value, lines=builder.lines)


def odd_character(text: str) -> str | None:
    """Return the first character of a text that YAML does not take, as `U+0007`; None for none."""
    odd = _CONTROL.search(text)
    return f"U+{ord(odd.group()):04X}" if odd else None


def is_plain_text(text: str) -> bool:
    """Return whether an unquoted scalar with these characters would be a text."""
    tag: str = _RESOLVER.resolve(  # type: ignore[no-untyped-call]
        yaml.ScalarNode, text, (True, False)
    )
    return tag == "tag:yaml.org,2002:str"


def _check_text(text: str, file: str) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise BadDescription(
            f"is larger than {MAX_BYTES // 1024} KiB",
            file=file,
            hint="Keep only what the step needs.",
        )
    odd = _CONTROL.search(text)
    if odd:
        raise BadDescription(
            f"holds the control character U+{ord(odd.group()):04X}",
            file=file,
            line=text.count("\n", 0, odd.start()) + 1,
            hint="Save the file as plain UTF-8 text.",
        )


def _syntax_error(error: yaml.MarkedYAMLError, text: str, file: str) -> BadDescription:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    lines = text.splitlines()
    if line is not None and any(
        "\t" in lines[at] for at in (line - 1, line - 2) if 0 <= at < len(lines)
    ):
        return BadDescription(
            "a tab stands where YAML wants spaces", file=file, line=line, hint="Indent with spaces."
        )
    for at in (line - 1, line - 2) if line is not None else ():
        if 0 <= at < len(lines) and (hidden := _hidden(lines[at])):
            return BadDescription(hidden.problem, file=file, line=at + 1, hint=hidden.hint)
    if mark and "cannot start any token" in (error.problem or ""):
        letter = (lines[mark.line : mark.line + 1] or [""])[0][mark.column : mark.column + 1]
        return BadDescription(
            f"a value begins with {letter}, which YAML does not allow",
            file=file,
            line=line,
            hint=f"Put the value into quotes: '{letter}…'.",
        )
    return BadDescription(
        f"is not valid YAML: {error.problem or error.context}",
        file=file,
        line=line,
        hint="Look at the indentation, colons and quotes there and above.",
    )


def _hidden(text: str) -> SpecError | None:
    """Return the problem of a blank that is none to YAML, or of what cannot be seen at all."""
    odd = next((one for one in text if unicodedata.category(one) in _HIDDEN and one != " "), None)
    return character_problem(odd) if odd is not None else None


class _Builder:
    """Makes values of one parser's events, for one document only."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._count = 0

    def document(self, events: Iterator[Any]) -> Any:
        value: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._bad(
                        event, "holds a second document", "Remove the line '---' and what follows."
                    )
                value = self._value(next(events), events, ())
        return value

    def _value(self, event: Any, events: Iterator[Any], path: Path) -> Any:
        before = self._count
        self._count += 1
        self.lines.setdefault(path, event.start_mark.line + 1)
        self._check_limits(event, path)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            raise self._bad(
                event,
                f"the tag {event.tag[:60]!r} is not allowed",
                "Write the value without a tag.",
            )
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(events, path)
        else:
            value = self._mapping(events, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._count - before)
        return value

    def _check_limits(self, event: Any, path: Path) -> None:
        if len(path) > MAX_DEPTH:
            raise self._bad(event, f"is nested deeper than {MAX_DEPTH} levels", "Write it flatter.")
        if self._count > MAX_VALUES:
            raise self._bad(
                event, f"holds more than {MAX_VALUES} values", "Keep only what the step needs."
            )

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            raise self._bad(
                event,
                f"the alias *{event.anchor[:60]} has no value before it",
                "Write the value out.",
            )
        value, size = self._anchors[event.anchor]
        self._count += size
        self._check_limits(event, ())
        return value

    def _sequence(self, events: Iterator[Any], path: Path) -> list[Any]:
        items: list[Any] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._value(event, events, (*path, len(items))))
        return items

    def _mapping(self, events: Iterator[Any], path: Path) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event)
            if key in fields:
                raise self._bad(
                    event, f"{key[:60]!r} stands twice in the same mapping", "Keep one of the two."
                )
            here = (*path, key)
            self.lines[here] = event.start_mark.line + 1
            fields[key] = self._value(next(events), events, here)
        return fields

    def _key(self, event: Any) -> str:
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
            raise self._bad(event, "a key is not a plain text", "Write a word before the colon.")
        if event.value == "<<" and not event.style:
            raise self._bad(event, "merge keys (<<) are not supported", "Write the values out.")
        if not event.style and (hidden := _hidden(event.value)):
            raise self._bad(event, f"a key {hidden.problem}", hidden.hint)
        return str(event.value)

    def _bad(self, event: Any, problem: str, hint: str) -> BadDescription:
        return BadDescription(problem, file=self.file, line=event.start_mark.line + 1, hint=hint)


def _scalar(event: Any) -> Any:
    """Return the value of a plain scalar; quoted ones, dates and the like are text."""
    text: str = event.value
    tag: str = _RESOLVER.resolve(  # type: ignore[no-untyped-call]
        yaml.ScalarNode, text, event.implicit
    )
    kind = tag.rsplit(":", 1)[-1]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("yes", "true", "on")
    if kind in ("int", "float"):
        return _number(text)
    return text


def _number(text: str) -> Any:
    try:
        number: float = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        return text
    return number if str(number) == text else text
