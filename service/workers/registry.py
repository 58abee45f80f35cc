"""Keep the list of workers: each writes its own row, and every process reads them.

A row says what a worker can build and how much of it at once. Which run is whose stands in the runs
alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder.errors import ErrorCode, Unavailable
from image_builder.state import BuildState
from service.db.database import clock, reading, writing
from service.db.models import WorkerRow
from service.db.tables import RUNS, Kind
from service.workers import routing
from service.workers.routing import Abilities

WORKERS: sa.Table = WorkerRow.__table__
STATES = ("ready", "stopping", "lost")
FORGOTTEN_AFTER_S = 24 * 3600.0
"""A worker that ended without a word is shown as lost for so long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registration:
    """What a worker states of itself."""

    name: str
    host: str
    version: str
    abilities: Abilities
    slots: int


class DatabaseUptime:
    """How long the database has answered without a break, as far as this process asked it.

    After it was away all workers are silent: none counts as gone before all had time to write
    again.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    def answers(self, *, does: bool) -> None:
        """Record that the database answered just now, or did not."""
        if not does:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()

    def for_at_least(self, seconds: float) -> bool:
        return self._since is not None and time.monotonic() - self._since >= seconds


def say_alive(engine: Engine, me: Registration, *, busy: int, is_stopping: bool) -> None:
    """Write or renew a worker's row; rows of workers long gone are removed."""
    with writing(engine, durable=False) as connection:
        moment = clock(connection)
        values = {
            "host": me.host[:60],
            "version": me.version,
            "platforms": list(me.abilities.platforms),
            "emulated": list(me.abilities.emulated),
            "targets": list(me.abilities.targets),
            "slots": me.slots,
            "busy": busy,
            "is_stopping": is_stopping,
            "heartbeat_at": moment,
        }
        if not connection.execute(
            WORKERS.update().where(WORKERS.c.name == me.name).values(values)
        ).rowcount:
            connection.execute(WORKERS.insert().values(name=me.name, started_at=moment, **values))
            connection.execute(
                WORKERS.delete().where(
                    WORKERS.c.heartbeat_at < moment - datetime.timedelta(seconds=FORGOTTEN_AFTER_S)
                )
            )
            connection.execute(
                WORKERS.delete().where(WORKERS.c.host == me.host[:60], WORKERS.c.name != me.name)
            )


def leave(engine: Engine, name: str) -> None:
    """Remove the row of a worker that ends."""
    with writing(engine) as connection:
        connection.execute(WORKERS.delete().where(WORKERS.c.name == name))


def all_workers(engine: Engine, *, lost_after_s: float) -> list[dict[str, Any]]:
    """Return every worker's row as a mapping, those that are alive first.

    Its `state` is one of `STATES`.
    """
    with reading(engine) as connection:
        silent_since = clock(connection) - datetime.timedelta(seconds=lost_after_s)
        rows = connection.execute(sa.select(WORKERS).order_by(WORKERS.c.host, WORKERS.c.name)).all()
    workers = [
        {
            **row._mapping,
            "state": "lost"
            if row.heartbeat_at < silent_since
            else "stopping"
            if row.is_stopping
            else "ready",
        }
        for row in rows
    ]
    return sorted(workers, key=lambda worker: STATES.index(worker["state"]))


def slots(engine: Engine, *, lost_after_s: float) -> int:
    """Return how many builds all workers take at once."""
    workers = all_workers(engine, lost_after_s=lost_after_s)
    return sum(worker["slots"] for worker in workers if worker["state"] == "ready")


def require_worker(engine: Engine, *, lost_after_s: float) -> None:
    """Raise `Unavailable` when no worker takes builds."""
    with reading(engine) as connection:
        if not _present(connection, lost_after_s):
            raise Unavailable(
                "No worker is at work.",
                hint="Start one: python3 builder_worker.py.",
                code=ErrorCode.INTERNAL,
            )


def kinds_for(
    engine: Engine, me: Registration, *, lost_after_s: float, must_execute: bool
) -> Sequence[Kind]:
    """Return the kinds of waiting runs that are for this worker."""
    with reading(engine) as connection:
        kinds = _waiting_kinds(connection)
        if not kinds:
            return ()
        others = [
            abilities for name, abilities in _present(connection, lost_after_s) if name != me.name
        ]
    return [
        kind
        for kind in kinds
        if routing.takes(me.abilities, others, kind, must_execute=must_execute)
    ]


def explain_waiting(engine: Engine, *, lost_after_s: float, must_execute: bool) -> None:
    """Record what each waiting run waits for, if no worker suits it.

    A run that is tried again later has that as its reason.
    """
    with reading(engine) as connection:
        kinds = _waiting_kinds(connection)
        present = (
            [abilities for _, abilities in _present(connection, lost_after_s)] if kinds else []
        )
    for kind in kinds:
        _explain(engine, kind, routing.waits_for(kind, present, must_execute=must_execute))


def _explain(engine: Engine, kind: Kind, message: str | None) -> None:
    waiting = (
        RUNS.c.state == BuildState.PENDING,
        RUNS.c.not_before.is_(None),
        RUNS.c.platform == kind[0],
        RUNS.c.target == kind[1],
        RUNS.c.message.is_distinct_from(message),
    )
    with reading(engine) as connection:
        if not connection.scalar(sa.select(sa.exists().where(*waiting))):
            return
    with writing(engine) as connection:
        ids = sa.select(RUNS.c.id).where(*waiting).with_for_update(key_share=True, skip_locked=True)
        connection.execute(
            RUNS.update().where(RUNS.c.id.in_(ids), *waiting[:2]).values(message=message)
        )


def _waiting_kinds(connection: Connection) -> list[Kind]:
    rows = connection.execute(
        sa.select(RUNS.c.platform, RUNS.c.target)
        .where(RUNS.c.state == BuildState.PENDING)
        .distinct()
    )
    return [(row.platform, row.target) for row in rows]


def _present(connection: Connection, lost_after_s: float) -> Collection[tuple[str, Abilities]]:
    """Who takes builds at present, by name."""
    silent_since = clock(connection) - datetime.timedelta(seconds=lost_after_s)
    rows = connection.execute(
        sa.select(WORKERS).where(
            WORKERS.c.heartbeat_at >= silent_since, WORKERS.c.is_stopping.is_(False)
        )
    )
    return [
        (row.name, Abilities(platforms=row.platforms, emulated=row.emulated, targets=row.targets))
        for row in rows
    ]
