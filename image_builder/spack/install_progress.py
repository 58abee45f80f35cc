"""Reads from Spack's own lines how far an install is. Pure.

Before 1.2 Spack writes `==> Installing <name>-<version>-<hash>`, `==> <name>: Executing phase: '<phase>'` and
`[+] <prefix>`; from 1.2 on a line for each step of a package, of several packages at once:
`[ ] <hash> <name>@<version> <phase> (<time>)`, with `[+]` when it is installed, `[x]` when it failed, `[e]` for an
external.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from image_builder.spack import prefixes

MAX_SHOWN = 6
"""How many packages at work are named; of more, only the count is shown."""

_TIMED = re.compile(r"#\d+ (?P<seconds>\d+(?:\.\d+)?) (?P<text>.*)\Z")
_INSTALLED = re.compile(r"\[\+\] (?:\S*/)?" + prefixes.named("name", hash_pattern="[a-z0-9]{32}"))
_INSTALLING = re.compile("==> Installing " + prefixes.named("name"))
_PHASE = re.compile(rf"==> (?P<name>{prefixes.NAME}): Executing phase: '(?P<phase>[\w-]+)'")
_STEP = re.compile(
    rf"\[(?P<mark>[ +xe])\] [a-z0-9]{{7}} (?P<name>{prefixes.NAME})@(?P<version>[^\s@]+)"
    r"(?: (?P<phase>[A-Za-z][\w -]*?))?(?:: \S+| /\S*)?(?: \([\dhms]+\))?\Z"
)
_NOT_TAKEN = "no binary available"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """Describes a package at work.

    `since_s` is when its build began, by the clock of the log; None where the log has no clock.
    """

    version: str
    phase: str
    since_s: float | None


class InstallProgress:
    """Counts the packages of one install: it is fed lines and returns what changed.

    `packages` are the names of all that is installed, a name for each node of the lockfile.
    """

    def __init__(self, packages: Sequence[str]) -> None:
        self.total = len(packages)
        self._names = sorted(set(packages), key=len, reverse=True)
        self._done: set[str] = set()
        self._running: dict[str, Running] = {}
        self._now_s: float | None = None

    def heard(self, line: str) -> tuple[int, int, str] | None:
        """Return `(done, total, what)` if the line changes the count or what is being built.

        `what` names all packages at work with their phase and the seconds since they began, or the
        package that has just finished.
        """
        text = self._at(line)
        if match := _STEP.search(text):
            return self._stepped(match)
        if match := _INSTALLED.search(text):
            return self._finished(*self._divided(match))
        if match := _INSTALLING.search(text):
            return self._began(*self._divided(match), "")
        if (match := _PHASE.match(text)) and match["name"] in self._running:
            return self._began(match["name"], self._running[match["name"]].version, match["phase"])
        return None

    def _at(self, line: str) -> str:
        """Return the line without buildx's clock before it, and remember the time."""
        match = _TIMED.match(line)
        if match is None:
            return line
        self._now_s = float(match["seconds"])
        return match["text"]

    def _divided(self, match: re.Match[str]) -> tuple[str, str]:
        """Return name and version of `py-3to2-1.0`, which the lockfile's names tell apart."""
        whole = f"{match['name']}-{match['version']}"
        for name in self._names:
            if whole.startswith(f"{name}-"):
                return name, whole.removeprefix(f"{name}-")
        return match["name"], match["version"]

    def _stepped(self, match: re.Match[str]) -> tuple[int, int, str] | None:
        name, version, phase = match["name"], match["version"], match["phase"] or ""
        if match["mark"] == "+":
            return self._finished(name, version)
        if match["mark"] == "e":
            return None
        if match["mark"] == "x" or phase == _NOT_TAKEN:
            self._running.pop(name, None)
            return self._progress(f"{name}@{version}")
        return self._began(name, version, phase)

    def _began(self, name: str, version: str, phase: str) -> tuple[int, int, str]:
        earlier = self._running.get(name)
        since_s = earlier.since_s if earlier else self._now_s
        self._running[name] = Running(version=version, phase=phase, since_s=since_s)
        return self._progress(f"{name}@{version}")

    def _finished(self, name: str, version: str) -> tuple[int, int, str]:
        self._running.pop(name, None)
        self._done.add(name)
        return self._progress(f"{name}@{version}")

    def _progress(self, last: str) -> tuple[int, int, str]:
        shown = [self._shown(name, at) for name, at in list(self._running.items())[:MAX_SHOWN]]
        more = len(self._running) - len(shown)
        what = ", ".join([*shown, *([f"{more} more"] if more else [])])
        return min(len(self._done), self.total), self.total, what or last

    def _shown(self, name: str, at: Running) -> str:
        """Return what is known of a package at work, such as `fftw@3.3.10 build 95 s`."""
        seconds = None if at.since_s is None or self._now_s is None else self._now_s - at.since_s
        time = f" {seconds:.0f} s" if seconds is not None and seconds >= 1 else ""
        return f"{name}@{at.version}" + (f" {at.phase}" if at.phase else "") + time


def packages_to_install(lock: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the name of each node of a `spack.lock` that is installed; externals are not."""
    nodes = lock.get("concrete_specs", {}).values()
    return tuple(str(node.get("name", "")) for node in nodes if not node.get("external"))
