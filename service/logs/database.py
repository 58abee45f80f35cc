"""Keep logs as rows of the database: a worker anywhere writes them, any web process follows them.

A log is a row of pieces without a gap: each begins at the byte where the one before it ended. Two
writers of one log (a worker that was given up and comes back) cannot overwrite each other: a
piece's place is its key.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from image_builder.errors import CicError
from service.db.database import now, reading, writing
from service.db.models import LogPiece
from service.logs.protocol import LogFacts, piece_bytes

PIECES: sa.Table = LogPiece.__table__
PIECE_BYTES = 64 * 1024
"""No piece is longer: who reads from a byte on need not look further back."""
FLUSH_EVERY_S = 0.5
MAX_WAITING_BYTES = 16 * 1024**2
"""What a worker keeps for a database that is away; lines beyond it are lost."""
GIVE_UP_S = 10.0
"""How long the end of a log waits for a database that is away."""

_log = logging.getLogger(__name__)


class DatabaseLogs:
    """The logs in one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, run_id: str) -> DatabaseLog:
        return DatabaseLog(self._engine, run_id)

    def all(self) -> Iterator[LogFacts]:
        rows = sa.select(
            PIECES.c.run_id,
            sa.func.max(PIECES.c.end_byte).label("size_bytes"),
            sa.func.max(PIECES.c.written_at).label("changed_at"),
        ).group_by(PIECES.c.run_id)
        with reading(self._engine) as connection:
            logs = connection.execute(rows).all()
        for row in logs:
            yield LogFacts(
                run_id=row.run_id, size_bytes=row.size_bytes, changed_at=row.changed_at.timestamp()
            )


class DatabaseLog:
    """One run's log."""

    def __init__(self, engine: Engine, run_id: str) -> None:
        self._engine, self._run_id = engine, run_id

    def read(self, offset: int, end: int | None = None) -> bytes:
        limit_bytes = piece_bytes(offset, end)
        pieces = (
            sa.select(PIECES.c.start_byte, PIECES.c.data)
            .where(
                PIECES.c.run_id == self._run_id,
                PIECES.c.end_byte > offset,
                PIECES.c.start_byte > offset - PIECE_BYTES,
                PIECES.c.start_byte < offset + limit_bytes,
            )
            .order_by(PIECES.c.start_byte)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(pieces).all()
        if not rows:
            return b""
        skipped = offset - rows[0].start_byte
        return b"".join(bytes(row.data) for row in rows)[skipped : skipped + limit_bytes]

    def size_bytes(self) -> int:
        with reading(self._engine) as connection:
            return (
                connection.scalar(
                    sa.select(sa.func.max(PIECES.c.end_byte)).where(PIECES.c.run_id == self._run_id)
                )
                or 0
            )

    def appender(self) -> DatabaseAppender:
        return DatabaseAppender(self)

    def remove(self) -> bool:
        with writing(self._engine) as connection:
            connection.execute(PIECES.delete().where(PIECES.c.run_id == self._run_id))
        return True

    def write(self, raw: bytes) -> None:
        """Append bytes at the log's present end.

        Raises `CicError` when the database is away.
        """
        while True:
            start = self.size_bytes()
            pieces = [
                (start + at, raw[at : at + PIECE_BYTES]) for at in range(0, len(raw), PIECE_BYTES)
            ]
            with (
                contextlib.suppress(sa.exc.IntegrityError),
                writing(self._engine, durable=False) as connection,
            ):
                connection.execute(
                    PIECES.insert(),
                    [
                        {
                            "run_id": self._run_id,
                            "start_byte": begin,
                            "end_byte": begin + len(data),
                            "data": data,
                            "written_at": now(),
                        }
                        for begin, data in pieces
                    ],
                )
                return


class DatabaseAppender:
    """Gathers lines, and writes them twice a second by a thread of its own.

    What it holds at `close` is written.
    """

    def __init__(self, log: DatabaseLog) -> None:
        self._to = log
        self._waiting = bytearray()
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def append(self, raw: bytes) -> None:
        with self._lock:
            if len(self._waiting) < MAX_WAITING_BYTES:
                self._waiting += raw

    def flush(self) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while not self._flush() and time.monotonic() < deadline:
            time.sleep(FLUSH_EVERY_S)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(GIVE_UP_S)

    def _write_all(self) -> None:
        while not self._closing.wait(FLUSH_EVERY_S):
            self._flush()
        if not self._flush():
            _log.warning("the end of a log was not written")

    def _flush(self) -> bool:
        with self._turn:
            with self._lock:
                raw = bytes(self._waiting)
            try:
                if raw:
                    self._to.write(raw)
            except CicError:
                return False
            except sa.exc.SQLAlchemyError:
                _log.exception("a log was not written")
                return False
            with self._lock:
                del self._waiting[: len(raw)]
            return True
