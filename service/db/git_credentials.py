"""Write and read with what users log in to git hosts; no other module does."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from image_builder.errors import FieldProblem, InvalidRequest
from service.db.database import now, reading, writing
from service.db.models import GitCredential
from service.db.tables import USERS, locked

CREDENTIALS: sa.Table = GitCredential.__table__
MAX_CREDENTIALS = 20


def keep(engine: Engine, user_id: int, *, host: str, login: str, sealed: str) -> None:
    """Keep a user's credential for a host, in place of an earlier one.

    Raises `InvalidRequest` when the user has too many.
    """
    own = CREDENTIALS.c.user_id == user_id
    with writing(engine) as connection:
        connection.execute(locked(sa.select(USERS.c.id).where(USERS.c.id == user_id)))
        connection.execute(CREDENTIALS.delete().where(own, CREDENTIALS.c.host == host))
        counted = sa.select(sa.func.count()).select_from(CREDENTIALS).where(own)
        if (connection.scalar(counted) or 0) >= MAX_CREDENTIALS:
            problem = "you have many credentials already"
            raise InvalidRequest([FieldProblem("host", problem, "remove some first")])
        connection.execute(
            CREDENTIALS.insert().values(
                user_id=user_id, host=host, login=login, sealed=sealed, created_at=now()
            )
        )


def remove(engine: Engine, user_id: int, credential_id: int) -> bool:
    """Remove a user's credential; return whether there was one."""
    with writing(engine) as connection:
        removed = connection.execute(
            CREDENTIALS.delete().where(
                CREDENTIALS.c.user_id == user_id, CREDENTIALS.c.id == credential_id
            )
        )
        return bool(removed.rowcount)


def of_user(engine: Engine, user_id: int) -> list[Any]:
    """Return a user's credentials without what is secret, by host."""
    rows = (
        sa.select(
            CREDENTIALS.c.id, CREDENTIALS.c.host, CREDENTIALS.c.login, CREDENTIALS.c.created_at
        )
        .where(CREDENTIALS.c.user_id == user_id)
        .order_by(CREDENTIALS.c.host)
    )
    with reading(engine) as connection:
        return list(connection.execute(rows))


def for_host(engine: Engine, user_id: int, host: str) -> tuple[str, str] | None:
    """Return with whom a user logs in to a host, and the sealed password; None for neither."""
    wanted = sa.select(CREDENTIALS.c.login, CREDENTIALS.c.sealed).where(
        CREDENTIALS.c.user_id == user_id, CREDENTIALS.c.host == host
    )
    with reading(engine) as connection:
        row = connection.execute(wanted).first()
        return None if row is None else (row.login, row.sealed)
