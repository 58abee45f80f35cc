"""Write the log of a run, as its worker does."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from image_builder.host.secrets import Secret, redactor
from service.logs.protocol import Log

MAX_LINE_BYTES = 16 * 1024


class RunLog:
    """A run's log, open for appending lines. Secrets are masked.

    What would make it longer than `max_bytes` is left out, and a last line says so.
    """

    def __init__(self, log: Log, *, max_bytes: int, secrets: Sequence[Secret] = ()) -> None:
        self._log, self._max_bytes = log, max_bytes
        self._redact = redactor(secrets)
        self._left_bytes = 0

    def __enter__(self) -> RunLog:
        self._appender = self._log.appender()
        self._left_bytes = self._max_bytes - self._log.size_bytes()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._appender.close()

    @property
    def size_bytes(self) -> int:
        """Return the log's present size, all of it visible to readers."""
        self.flush()
        return self._log.size_bytes()

    def flush(self) -> None:
        """Write out what is pending.

        It is called before the build's end is recorded: readers read the log to its end then.
        """
        self._appender.flush()

    def line(self, text: str) -> None:
        """Append one line, without any secret."""
        raw = (
            self._redact(text).encode("utf-8", "replace")[:MAX_LINE_BYTES].replace(b"\n", b" ")
            + b"\n"
        )
        if self._left_bytes < 0:
            return
        self._left_bytes -= len(raw)
        self._appender.append(
            raw if self._left_bytes >= 0 else b"[the log is full; what follows is not kept]\n"
        )
