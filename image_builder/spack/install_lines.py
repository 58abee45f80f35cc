"""Reads the lines that Spack writes about each package of an install. Pure.

Before 1.2 Spack writes `==> Installing <name>-<version>-<hash>`, `==> <name>: Executing phase: '<phase>'` and
`[+] <prefix>`, and of a package from a build cache `==> Extracting <name>-<version>-<hash> from binary cache`. From 1.2
on it writes a line for each step of a package, of several packages at once:
`[ ] <hash> <name>@<version> <phase> (<time>)`, with `[+]` when it is installed, `[x]` when it failed, `[e]` for an
external.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable

from image_builder.spack import prefixes

_WHOLE_HASH = r"(?P<hash>[a-z0-9]{32})"
_TIMED = re.compile(r"#\d+ (?P<seconds>\d+(?:\.\d+)?) (?P<text>.*)\Z")
_INSTALLED = re.compile(r"\[\+\] (?:\S*/)?" + prefixes.named("name", hash_pattern=_WHOLE_HASH))
_INSTALLING = re.compile(
    "==> Installing " + prefixes.named("name", hash_pattern=r"(?P<hash>[a-z0-9]{7,32})")
)
_EXTRACTING = re.compile(
    "==> Extracting " + prefixes.named("name", hash_pattern=_WHOLE_HASH) + " from binary cache"
)
_PHASE = re.compile(rf"==> (?P<name>{prefixes.NAME}): Executing phase: '(?P<phase>[\w-]+)'")
_STEP = re.compile(
    rf"\[(?P<mark>[ +xe])\] (?P<hash>[a-z0-9]{{7}}) (?P<name>{prefixes.NAME})@(?P<version>[^\s@]+)"
    r"(?: (?P<phase>[A-Za-z][\w -]*?))?(?:: \S+| /\S*)?(?: \([\dhms]+\))?\Z"
)
_NOT_TAKEN = "no binary available"
_FROM_CACHE = frozenset({"fetching from build cache", "relocating", "rewiring"})
"""Phases of a package that is not built, from 1.2 on."""


class Event(enum.Enum):
    """Says what became of a package."""

    BEGAN = "began"
    PHASE = "phase"
    FROM_CACHE = "from cache"
    NOT_IN_CACHE = "not in cache"
    INSTALLED = "installed"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstallLine:
    """Describes what one line says of a package. What it does not say is empty.

    `phase` of an event `FROM_CACHE` is empty where Spack names none.
    """

    event: Event
    name: str
    version: str = ""
    hash: str = ""
    phase: str = ""


class LineReader:
    """Reads the lines of one install, whose packages have these names.

    `now_s` is the time of the last line by the clock of the log; None where the log has no clock.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(set(names), key=len, reverse=True)
        self._installed: set[str] = set()
        self.now_s: float | None = None

    def read(self, line: str) -> InstallLine | None:
        """Return what a line says of a package, or None for one that says nothing of any.

        Spack 1.1 says of a package that it took from a cache that it begins after it is installed:
        such a line says nothing.
        """
        text = self._at(line)
        if match := _STEP.search(text):
            return _step(match)
        for pattern, event in (
            (_INSTALLED, Event.INSTALLED),
            (_INSTALLING, Event.BEGAN),
            (_EXTRACTING, Event.FROM_CACHE),
        ):
            if match := pattern.search(text):
                short = match["hash"][:7]
                if event is Event.INSTALLED:
                    self._installed.add(short)
                elif event is Event.BEGAN and short in self._installed:
                    return None
                name, version = self._divided(match)
                return InstallLine(event=event, name=name, version=version, hash=match["hash"])
        if match := _PHASE.match(text):
            return InstallLine(event=Event.PHASE, name=match["name"], phase=match["phase"])
        return None

    def _at(self, line: str) -> str:
        """Return the line without buildx's clock before it, and remember the time."""
        match = _TIMED.match(line)
        if match is None:
            return line
        self.now_s = float(match["seconds"])
        return match["text"]

    def _divided(self, match: re.Match[str]) -> tuple[str, str]:
        """Return name and version of `py-3to2-1.0`, which the lockfile's names tell apart."""
        whole = f"{match['name']}-{match['version']}"
        for name in self._names:
            if whole.startswith(f"{name}-"):
                return name, whole.removeprefix(f"{name}-")
        return match["name"], match["version"]


def _step(match: re.Match[str]) -> InstallLine | None:
    phase = match["phase"] or ""
    if match["mark"] == "e":
        return None
    if match["mark"] == "+":
        event = Event.INSTALLED
    elif match["mark"] == "x":
        event = Event.FAILED
    elif phase == _NOT_TAKEN:
        event = Event.NOT_IN_CACHE
    else:
        event = Event.FROM_CACHE if phase in _FROM_CACHE else Event.PHASE
    return InstallLine(
        event=event,
        name=match["name"],
        version=match["version"],
        hash=match["hash"],
        phase=phase,
    )
