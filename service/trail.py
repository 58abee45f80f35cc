"""The audit trail: who did what, when, from where. `store.note` writes it; operators read it here."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from service.database import now, reading, writing
from service.models import AuditEvent

EVENTS: sa.Table = AuditEvent.__table__


def events(
    engine: Engine,
    *,
    user: str | None = None,
    action: str | None = None,
    subject: str | None = None,
    since: datetime.datetime | None = None,
    limit: int = 100,
) -> Sequence[Any]:
    """What happened, newest first; `subject` is a part of what it happened to."""
    chosen: list[sa.ColumnElement[bool]] = []
    if user is not None:
        chosen.append(sa.func.lower(EVENTS.c.user) == user.lower())
    if action is not None:
        chosen.append(EVENTS.c.action == action)
    if subject is not None:
        chosen.append(EVENTS.c.subject.contains(subject, autoescape=True))
    if since is not None:
        chosen.append(EVENTS.c.at >= since)
    with reading(engine) as connection:
        return connection.execute(
            sa.select(EVENTS).where(*chosen).order_by(EVENTS.c.id.desc()).limit(limit)
        ).all()


def count_older(engine: Engine, age_s: float) -> int:
    """How many entries are older than that."""
    with reading(engine) as connection:
        return (
            connection.scalar(sa.select(sa.func.count()).select_from(EVENTS).where(_older(age_s)))
            or 0
        )


def forget(engine: Engine, age_s: float) -> int:
    """Remove the entries that are older than that; returns how many went."""
    with writing(engine) as connection:
        return connection.execute(EVENTS.delete().where(_older(age_s))).rowcount


def _older(age_s: float) -> sa.ColumnElement[bool]:
    return EVENTS.c.at < now() - datetime.timedelta(seconds=age_s)
