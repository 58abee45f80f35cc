"""Counts from Spack's own lines how far an install is. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from image_builder.spack.install_lines import Event, InstallLine, LineReader

MAX_SHOWN = 6
"""How many packages at work are named; of more, only the count is shown."""


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
        self._reader = LineReader(packages)
        self._done: set[str] = set()
        self._running: dict[str, Running] = {}

    def heard(self, line: str) -> tuple[int, int, str] | None:
        """Return `(done, total, what)` if the line changes the count or what is being built.

        `what` names all packages at work with their phase and the seconds since they began, or the
        package that has just finished.
        """
        said = self._reader.read(line)
        return None if said is None else self.count(said, self._reader.now_s)

    def count(self, said: InstallLine, now_s: float | None) -> tuple[int, int, str] | None:
        """Return what `heard` does for a line that was read already; `now_s` is the log's time."""
        if said.event is Event.INSTALLED:
            self._running.pop(said.name, None)
            self._done.add(said.name)
        elif said.event in (Event.FAILED, Event.NOT_IN_CACHE):
            self._running.pop(said.name, None)
        elif said.event is Event.BEGAN or said.phase:
            if not said.version and said.name not in self._running:
                return None
            self._begin(said, now_s)
        else:
            return None
        version = said.version or self._running[said.name].version
        return self._progress(f"{said.name}@{version}", now_s)

    def _begin(self, said: InstallLine, now_s: float | None) -> None:
        earlier = self._running.get(said.name)
        self._running[said.name] = Running(
            version=said.version or (earlier.version if earlier else ""),
            phase=said.phase,
            since_s=earlier.since_s if earlier else now_s,
        )

    def _progress(self, last: str, now_s: float | None) -> tuple[int, int, str]:
        running = list(self._running.items())[:MAX_SHOWN]
        shown = [_shown(name, at, now_s) for name, at in running]
        more = len(self._running) - len(shown)
        what = ", ".join([*shown, *([f"{more} more"] if more else [])])
        return min(len(self._done), self.total), self.total, what or last


def _shown(name: str, at: Running, now_s: float | None) -> str:
    """Return what is known of a package at work, such as `fftw@3.3.10 build 95 s`."""
    seconds = None if at.since_s is None or now_s is None else now_s - at.since_s
    time = f" {seconds:.0f} s" if seconds is not None and seconds >= 1 else ""
    return f"{name}@{at.version}" + (f" {at.phase}" if at.phase else "") + time


def packages_to_install(lock: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the name of each node of a `spack.lock` that is installed; externals are not."""
    nodes = lock.get("concrete_specs", {}).values()
    return tuple(str(node.get("name", "")) for node in nodes if not node.get("external"))
