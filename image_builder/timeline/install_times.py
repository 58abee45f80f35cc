"""Tells from Spack's own lines when each package was installed, and where it came from. Pure."""

from __future__ import annotations

from image_builder.spack.install_lines import Event, InstallLine
from image_builder.timeline import spans
from image_builder.timeline.spans import Span

_Key = tuple[str, str]
"""A package: its name, and the first digits of its hash."""


class InstallTimes:
    """Follows the packages of one install: it is fed what lines say, with the time."""

    def __init__(self) -> None:
        self._running: dict[_Key, Span] = {}
        self._from_cache: set[_Key] = set()
        self._ended: set[_Key] = set()

    def heard(self, said: InstallLine, at_s: float) -> Span | None:
        """Return the package if the line begins or ends it."""
        keys = self._meant(said)
        if said.event is Event.FROM_CACHE:
            self._from_cache.update(keys)
        elif said.event in (Event.PHASE, Event.NOT_IN_CACHE):
            self._from_cache.difference_update(keys)
        if not said.hash:
            return None
        (key,) = keys
        if said.event in (Event.INSTALLED, Event.FAILED):
            return self._end(key, said, at_s)
        if key in self._running:
            return None
        self._running[key] = began = _span(said, at_s)
        return began

    def stop(self, at_s: float) -> list[Span]:
        """Return the packages that will not end, as their install has ended."""
        stopped = [span.ended(at_s, spans.STOPPED) for span in self._running.values()]
        self._running.clear()
        return stopped

    def _meant(self, said: InstallLine) -> list[_Key]:
        """Return the packages that a line is about; one without a hash is about all of a name."""
        if said.hash:
            return [(said.name, said.hash[:7])]
        return [key for key in self._running if key[0] == said.name]

    def _end(self, key: _Key, said: InstallLine, at_s: float) -> Span | None:
        running = self._running.pop(key, None)
        if running is None and key in self._ended:
            return None  # Spack names what others need once more
        self._ended.add(key)
        if said.event is Event.FAILED:
            outcome = spans.FAILED
        elif running is None:
            outcome = spans.PRESENT
        else:
            outcome = spans.CACHED if key in self._from_cache else spans.BUILT
        return (running or _span(said, at_s)).ended(at_s, outcome)


def _span(said: InstallLine, at_s: float) -> Span:
    return Span(
        kind=spans.PACKAGE, name=said.name, version=said.version, hash=said.hash, began_s=at_s
    )
