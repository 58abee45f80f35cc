"""Keep the audit trail: who did what, when, from where.

Workers and pages write it, operators read it.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from service.db.ageing import Ageing
from service.db.database import now, reading, writing
from service.db.models import AuditEvent

_log = logging.getLogger(__name__)

AUDIT: sa.Table = AuditEvent.__table__
ENTRIES = Ageing(AUDIT, "at")


def events(
    engine: Engine,
    *,
    user: str | None = None,
    action: str | None = None,
    subject: str | None = None,
    since: datetime.datetime | None = None,
    limit: int = 100,
) -> Sequence[Any]:
    """Return what happened, newest first; `subject` is a part of what it happened to."""
    chosen: list[sa.ColumnElement[bool]] = []
    if user is not None:
        chosen.append(sa.func.lower(AUDIT.c.user) == user.lower())
    if action is not None:
        chosen.append(AUDIT.c.action == action)
    if subject is not None:
        chosen.append(AUDIT.c.subject.contains(subject, autoescape=True))
    if since is not None:
        chosen.append(AUDIT.c.at >= since)
    with reading(engine) as connection:
        return connection.execute(
            sa.select(AUDIT).where(*chosen).order_by(AUDIT.c.id.desc()).limit(limit)
        ).all()


def record_audit_event(
    engine: Engine,
    *,
    user: str | None,
    action: str,
    subject: str | None = None,
    address: str | None = None,
) -> None:
    """Record who did what, and log it."""
    said = {
        "action": action,
        "subject": subject[:300] if subject else None,
        "user": user,
        "address": address,
    }
    _log.info("action=%s subject=%r user=%s address=%s", *said.values(), extra=said)
    with writing(engine, durable=False) as connection:
        connection.execute(AUDIT.insert().values(at=now(), **said))
