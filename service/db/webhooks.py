"""Write and read the webhooks of users; no other module writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from image_builder.errors import FieldProblem, InvalidRequest
from service.db.database import now, reading, writing
from service.db.models import WebhookRow
from service.db.tables import USERS, locked

WEBHOOKS: sa.Table = WebhookRow.__table__
MAX_WEBHOOKS = 10
MAX_URL = 500

_SHOWN = (
    WEBHOOKS.c.id,
    WEBHOOKS.c.url,
    WEBHOOKS.c.events,
    WEBHOOKS.c.is_on,
    WEBHOOKS.c.why_off,
    WEBHOOKS.c.created_at,
)
"""What its user may see: all but the secret."""


def add(engine: Engine, user_id: int, *, url: str, events: Sequence[str], sealed: str) -> int:
    """Keep a webhook and return its id. Raises `InvalidRequest` when the user has too many."""
    own = WEBHOOKS.c.user_id == user_id
    with writing(engine) as connection:
        connection.execute(locked(sa.select(USERS.c.id).where(USERS.c.id == user_id)))
        counted = sa.select(sa.func.count()).select_from(WEBHOOKS).where(own)
        if (connection.scalar(counted) or 0) >= MAX_WEBHOOKS:
            problem = "you have many webhooks already"
            raise InvalidRequest([FieldProblem("url", problem, "remove some first")])
        new = WEBHOOKS.insert().values(
            user_id=user_id,
            url=url,
            events=list(events),
            sealed=sealed,
            is_on=True,
            created_at=now(),
        )
        return int(connection.execute(new.returning(WEBHOOKS.c.id)).scalar_one())


def change(engine: Engine, user_id: int, webhook_id: int, **values: Any) -> bool:
    """Change columns of a user's webhook; return whether there is one.

    Turning it on forgets why it was off.
    """
    if values.get("is_on"):
        values["why_off"] = None
    mine = (WEBHOOKS.c.user_id == user_id, WEBHOOKS.c.id == webhook_id)
    with writing(engine) as connection:
        return bool(connection.execute(WEBHOOKS.update().where(*mine).values(**values)).rowcount)


def turn_off(engine: Engine, webhook_id: int, why: str) -> None:
    """Turn a webhook off for its user, and say why."""
    with writing(engine) as connection:
        connection.execute(
            WEBHOOKS.update()
            .where(WEBHOOKS.c.id == webhook_id)
            .values(is_on=False, why_off=why[:200])
        )


def remove(engine: Engine, user_id: int, webhook_id: int) -> bool:
    """Remove a user's webhook with its notices; return whether there was one."""
    with writing(engine) as connection:
        removed = connection.execute(
            WEBHOOKS.delete().where(WEBHOOKS.c.user_id == user_id, WEBHOOKS.c.id == webhook_id)
        )
        return bool(removed.rowcount)


def of_user(engine: Engine, user_id: int) -> list[Any]:
    """Return a user's webhooks without their secrets, the oldest first."""
    rows = sa.select(*_SHOWN).where(WEBHOOKS.c.user_id == user_id).order_by(WEBHOOKS.c.id)
    with reading(engine) as connection:
        return list(connection.execute(rows))


def one_of_user(engine: Engine, user_id: int, webhook_id: int) -> Any | None:
    """Return a user's webhook of this id without its secret, or None."""
    wanted = sa.select(*_SHOWN).where(WEBHOOKS.c.user_id == user_id, WEBHOOKS.c.id == webhook_id)
    with reading(engine) as connection:
        return connection.execute(wanted).first()


def to_send(engine: Engine, webhook_id: int) -> Any | None:
    """Return where a notice goes and the sealed secret it is signed with; None without it."""
    wanted = sa.select(WEBHOOKS.c.url, WEBHOOKS.c.sealed, WEBHOOKS.c.is_on).where(
        WEBHOOKS.c.id == webhook_id
    )
    with reading(engine) as connection:
        return connection.execute(wanted).first()
