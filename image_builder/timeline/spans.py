"""Says what ran in a build, and from when to when. Pure.

Three kinds of spans: the steps that this library takes, the layers that buildx makes in them, and
the packages that Spack installs, several side by side. A span is reported when it begins, and
again, with its end, when it has ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

STEP, LAYER, PACKAGE = "step", "layer", "package"
KINDS = (STEP, LAYER, PACKAGE)
DONE, BUILT, CACHED, PRESENT, FAILED, STOPPED = (
    "done",
    "built",
    "cached",
    "present",
    "failed",
    "stopped",
)
OUTCOMES = {
    DONE: "it ended well",
    BUILT: "a package that was built from source",
    CACHED: "a package that was taken from the build cache",
    PRESENT: "a package that was installed already",
    FAILED: "it failed",
    STOPPED: "it was ended before it was done",
}
MAX_SPANS = 2000
MAX_NAME, MAX_WORD = 160, 80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Describes a part of a build; times are in seconds since 1970.

    `outcome` is one of `OUTCOMES`, and None like `ended_s` while the part goes on. Packages alone
    have a version and a hash.
    """

    kind: str
    name: str
    began_s: float
    ended_s: float | None = None
    outcome: str | None = None
    version: str = ""
    hash: str = ""

    def ended(self, at_s: float, outcome: str) -> Span:
        """Return the same span with its end."""
        return dataclasses.replace(self, ended_s=at_s, outcome=outcome)


class Timeline:
    """Gathers the spans of one build, and no more than `MAX_SPANS`."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, str, str, str, float], Span] = {}
        self._left_out = 0

    def add(self, span: Span) -> None:
        """Add a span that began, or put one that has ended in the place of its beginning."""
        span = dataclasses.replace(
            span,
            name=span.name[:MAX_NAME],
            version=span.version[:MAX_WORD],
            hash=span.hash[:MAX_WORD],
        )
        key = (span.kind, span.name, span.version, span.hash, span.began_s)
        if key in self._spans or len(self._spans) < MAX_SPANS:
            self._spans[key] = span
        elif span.ended_s is None or span.ended_s == span.began_s:
            self._left_out += 1

    def document(self) -> dict[str, Any]:
        """Return all spans as a JSON object, in the order in which they began."""
        spans = sorted(self._spans.values(), key=lambda span: span.began_s)
        return {
            "spans": [_without_blanks(dataclasses.asdict(span)) for span in spans],
            "left_out": self._left_out,
        }


def spans_of(document: Mapping[str, Any]) -> list[Span]:
    """Return the spans of a document that `Timeline` made."""
    return [Span(**span) for span in document["spans"]]


def _without_blanks(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "")}
