"""Keep the sessions of browsers: the cookie holds a secret, and the database the user."""

from __future__ import annotations

import datetime
import secrets
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from service.db.accounts import USERS, WHO, token_digest
from service.db.database import now, reading, writing
from service.db.models import Session

SESSIONS: sa.Table = Session.__table__

LIFE = datetime.timedelta(days=7)
MAX_OF_USER = 50
"""Sessions of one user; beyond that, the oldest end."""


def begin(engine: Engine, user_id: int, credential_version: int) -> str:
    """Begin a session and return its secret, which is kept nowhere else."""
    secret, moment = secrets.token_urlsafe(32), now()
    mine = sa.select(SESSIONS.c.digest).where(SESSIONS.c.user_id == user_id)
    oldest = mine.order_by(SESSIONS.c.created_at.desc()).offset(MAX_OF_USER - 1)
    with writing(engine) as connection:
        connection.execute(SESSIONS.delete().where(SESSIONS.c.until <= moment))
        surplus = connection.scalars(oldest).all()
        connection.execute(SESSIONS.delete().where(SESSIONS.c.digest.in_(surplus)))
        connection.execute(
            SESSIONS.insert().values(
                digest=token_digest(secret),
                user_id=user_id,
                credential_version=credential_version,
                created_at=moment,
                until=moment + LIFE,
            )
        )
    return secret


def user_of(engine: Engine, secret: str) -> Any | None:
    """Return the user of a session that has not ended, or None.

    A session ends with its time, with a log-out, and with every change of what proves the user.
    """
    with reading(engine) as connection:
        return connection.execute(
            sa.select(*WHO)
            .join_from(SESSIONS, USERS)
            .where(
                SESSIONS.c.digest == token_digest(secret),
                SESSIONS.c.until > now(),
                SESSIONS.c.credential_version == USERS.c.credential_version,
            )
        ).first()


def end(engine: Engine, secret: str) -> None:
    """End a session, for copies of its cookie, too."""
    with writing(engine) as connection:
        connection.execute(SESSIONS.delete().where(SESSIONS.c.digest == token_digest(secret)))
