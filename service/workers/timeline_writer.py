"""Write down what ran in a run, and when: while it goes on now and then, and at its end."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from image_builder.host.secrets import Secret, redactor
from image_builder.timeline.spans import Span, Timeline
from service.workers.latest_writer import LatestWriter

EVERY_S = 5.0
"""A document of two thousand packages has some 300 kB."""

_log = logging.getLogger(__name__)


class TimelineWriter:
    """Gathers the spans of a run, whose names are freed of secrets, and writes them as a document.

    No call raises: a build does not end for its timeline's sake. Threads may share it.
    """

    def __init__(
        self,
        write: Callable[[Mapping[str, Any]], None],
        *,
        secrets: Sequence[Secret] = (),
        every_s: float = EVERY_S,
    ) -> None:
        self._write = write
        self._redact = redactor(secrets)
        self._lock = threading.Lock()
        self._timeline = Timeline()
        self._writer: LatestWriter[None] = LatestWriter(lambda _: self._write_now(), every_s)

    def add(self, span: Span) -> None:
        """Add a span, or its end."""
        with self._lock:
            self._timeline.add(dataclasses.replace(span, name=self._redact(span.name)))
        self._writer.give(None)

    def flush(self) -> None:
        """Write all that is known now. It is called before the end of a build is recorded."""
        self._writer.give(None, at_once=True)

    def _write_now(self) -> None:
        with self._lock:
            document = self._timeline.document()
        if not document["spans"]:
            return
        try:
            self._write(document)
        except Exception:  # the build itself learns of a database that is away
            _log.warning("a timeline was not written", exc_info=True)
