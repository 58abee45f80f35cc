"""Write and read where users get mail; no other module writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from service.db.database import now, reading, writing
from service.db.models import MailAddress

ADDRESSES: sa.Table = MailAddress.__table__


def keep(engine: Engine, user_id: int, *, address: str, events: Sequence[str], is_on: bool) -> bool:
    """Keep where a user gets mail and of what; return whether the address is confirmed.

    Another address than before has to be confirmed.
    """
    with writing(engine) as connection:
        before = _of_user(connection, user_id)
        is_confirmed = (
            before is not None and before.address == address and before.confirmed_at is not None
        )
        _replace(
            connection,
            user_id,
            address=address,
            events=list(events),
            is_on=is_on,
            confirmed_at=before.confirmed_at if before is not None and is_confirmed else None,
        )
        return is_confirmed


def confirm(engine: Engine, user_id: int, address: str) -> bool:
    """Note that a user reads mail at an address; return False when the user has another by now."""
    with writing(engine) as connection:
        changed = connection.execute(
            ADDRESSES.update()
            .where(ADDRESSES.c.user_id == user_id, ADDRESSES.c.address == address)
            .values(confirmed_at=now())
        )
        return bool(changed.rowcount)


def remove(engine: Engine, user_id: int) -> bool:
    """Forget where a user gets mail; return whether it was known."""
    with writing(engine) as connection:
        removed = connection.execute(ADDRESSES.delete().where(ADDRESSES.c.user_id == user_id))
        return bool(removed.rowcount)


def of_user(engine: Engine, user_id: int) -> Any | None:
    """Return where a user gets mail and of what, or None."""
    with reading(engine) as connection:
        return _of_user(connection, user_id)


def _of_user(connection: Connection, user_id: int) -> Any | None:
    return connection.execute(sa.select(ADDRESSES).where(ADDRESSES.c.user_id == user_id)).first()


def _replace(connection: Connection, user_id: int, **values: Any) -> None:
    connection.execute(ADDRESSES.delete().where(ADDRESSES.c.user_id == user_id))
    connection.execute(ADDRESSES.insert().values(user_id=user_id, changed_at=now(), **values))
