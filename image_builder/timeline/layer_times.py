"""Tells from buildx's plain progress log when each layer was made. Pure."""

from __future__ import annotations

import re

from image_builder.timeline import spans
from image_builder.timeline.spans import Span

MIN_S = 0.1
"""What takes less is not worth a line: most of a Dockerfile's steps copy a file."""
MAX_RUNNING = 200

_HEADER = re.compile(
    r"#(?P<id>\d{1,6}) (?P<name>\[(?!internal\])[^\]]{1,80}\] .+|exporting to .+)\Z"
)
_END = re.compile(
    r"#(?P<id>\d{1,6}) "
    r"(?:DONE (?P<seconds>\d{1,7}(?:\.\d+)?)s|(?P<cached>CACHED)|(?P<error>ERROR|CANCELED).*)\Z"
)


class LayerTimes:
    """Follows the layers of one buildx command: it is fed lines, with the time."""

    def __init__(self) -> None:
        self._running: dict[str, Span] = {}

    def heard(self, line: str, at_s: float) -> Span | None:
        """Return the layer if the line begins or ends it.

        One that was there already, or took no time, never began.
        """
        if match := _END.match(line):
            return self._end(match, at_s)
        if (match := _HEADER.match(line)) and len(self._running) < MAX_RUNNING:
            # buildx names a layer again when it comes back to it.
            self._running.setdefault(
                match["id"], Span(kind=spans.LAYER, name=match["name"], began_s=at_s)
            )
        return None

    def stop(self, at_s: float) -> list[Span]:
        """Return the layers that will not end, as their command has ended."""
        stopped = [span.ended(at_s, spans.STOPPED) for span in self._running.values()]
        self._running.clear()
        return [span for span in stopped if at_s - span.began_s >= MIN_S]

    def _end(self, match: re.Match[str], at_s: float) -> Span | None:
        span = self._running.pop(match["id"], None)
        if span is None or match["cached"]:
            return None
        if match["error"]:
            return span.ended(at_s, spans.FAILED)
        return span.ended(at_s, spans.DONE) if float(match["seconds"]) >= MIN_S else None
