"""Write and read groups of users; no other module writes them.

A group is an operator's or a provider's, and never both: what a provider calls a group does not
reach one that an operator has made under this name.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder.errors import FieldProblem, InvalidRequest
from service.db.accounts import USERS, require_user
from service.db.database import now, reading, writing
from service.db.models import Group, Membership

GROUPS: sa.Table = Group.__table__
MEMBERS: sa.Table = Membership.__table__

MAX_NAME = 200


def is_name(name: str) -> bool:
    """Return whether a text can be the name of a group: commas part names in lists."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and "," not in name == name.strip()


def belongs(user_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a row of `MEMBERS` makes this user a member by now."""
    return sa.and_(
        MEMBERS.c.user_id == user_id, sa.or_(MEMBERS.c.until.is_(None), MEMBERS.c.until > now())
    )


def of_user(engine: Engine, user_id: int) -> list[str]:
    """Return the names of a user's groups."""
    names = (
        sa.select(GROUPS.c.name)
        .join_from(MEMBERS, GROUPS)
        .where(belongs(user_id))
        .order_by(GROUPS.c.name)
    )
    with reading(engine) as connection:
        return list(connection.scalars(names))


def replace_claimed(
    connection: Connection, user_id: int, names: Sequence[str], until: datetime.datetime
) -> list[str]:
    """Make a user a member of these groups of the provider, and of no others of its groups.

    Returns the names that are groups of the operator, which a provider does not fill.
    """
    rows = connection.execute(sa.select(GROUPS).where(GROUPS.c.name.in_(names))).all()
    local = [row.name for row in rows if row.is_local]
    known = {row.name: row.id for row in rows if not row.is_local}
    for name in dict.fromkeys(names):
        if name not in known and name not in local:
            made = connection.execute(
                GROUPS.insert().values(name=name, is_local=False, created_at=now())
            )
            known[name] = (made.inserted_primary_key or (0,))[0]
    claimed = sa.select(GROUPS.c.id).where(GROUPS.c.is_local.is_(False))
    connection.execute(
        MEMBERS.delete().where(MEMBERS.c.user_id == user_id, MEMBERS.c.group_id.in_(claimed))
    )
    if known:
        connection.execute(
            MEMBERS.insert(),
            [
                {"group_id": group_id, "user_id": user_id, "until": until}
                for group_id in known.values()
            ],
        )
    return local


# ---- The operator's groups


def add(engine: Engine, name: str) -> None:
    """Make a group. Raises `InvalidRequest` for a name that is none, or taken."""
    if not is_name(name):
        raise InvalidRequest(
            [FieldProblem("name", "cannot be a group's name", f"write 1 to {MAX_NAME} characters")]
        )
    try:
        with writing(engine) as connection:
            connection.execute(GROUPS.insert().values(name=name, is_local=True, created_at=now()))
    except sa.exc.IntegrityError:
        raise InvalidRequest(
            [FieldProblem("name", f"there is a group {name} already", "choose another")]
        ) from None


def remove(engine: Engine, name: str) -> None:
    """Remove a group with all that is shared with it; a provider's comes back with a log-in."""
    with writing(engine) as connection:
        if not connection.execute(GROUPS.delete().where(GROUPS.c.name == name)).rowcount:
            raise _unknown(name)


def join(engine: Engine, name: str, user: str) -> None:
    """Make a user a member of an operator's group."""
    group_id, user_id = _local(engine, name), int(require_user(engine, user, field="user").id)
    with writing(engine) as connection:
        row = {"group_id": group_id, "user_id": user_id}
        if connection.execute(sa.select(MEMBERS).filter_by(**row)).first() is None:
            connection.execute(MEMBERS.insert().values(**row))


def leave(engine: Engine, name: str, user: str) -> None:
    """Take a user out of an operator's group."""
    group_id, user_id = _local(engine, name), int(require_user(engine, user, field="user").id)
    with writing(engine) as connection:
        connection.execute(
            MEMBERS.delete().where(MEMBERS.c.group_id == group_id, MEMBERS.c.user_id == user_id)
        )


def everyone(engine: Engine) -> Sequence[Any]:
    """Return every group with each of its members (`user`, None for none), by names."""
    is_member = sa.and_(
        MEMBERS.c.group_id == GROUPS.c.id,
        sa.or_(MEMBERS.c.until.is_(None), MEMBERS.c.until > now()),
    )
    rows = (
        sa.select(GROUPS.c.name, GROUPS.c.is_local, USERS.c.name.label("user"))
        .select_from(
            GROUPS.outerjoin(MEMBERS, is_member).outerjoin(USERS, USERS.c.id == MEMBERS.c.user_id)
        )
        .order_by(GROUPS.c.name, sa.func.lower(USERS.c.name))
    )
    with reading(engine) as connection:
        return connection.execute(rows).all()


def _local(engine: Engine, name: str) -> int:
    with reading(engine) as connection:
        row = connection.execute(sa.select(GROUPS).where(GROUPS.c.name == name)).first()
    if row is None:
        raise _unknown(name)
    if not row.is_local:
        raise InvalidRequest(
            [
                FieldProblem(
                    "name",
                    "is a group of the OpenID provider",
                    "change its members there; they are read at each log-in",
                )
            ]
        )
    return int(row.id)


def _unknown(name: str) -> InvalidRequest:
    return InvalidRequest(
        [FieldProblem("name", f"there is no group {name[:MAX_NAME]}", "see groups list")]
    )
