"""Keep whom an OpenID provider knows: a user here is found by issuer and subject, never by a name."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder.errors import FieldProblem, InvalidRequest
from service.db import accounts, groups
from service.db.accounts import USERS
from service.db.database import AdvisoryLock, now, reading, take_lock, writing
from service.db.models import Subject, UsedOnce
from service.errors import NameTaken

SUBJECTS: sa.Table = Subject.__table__
USED: sa.Table = UsedOnce.__table__


def take_in(
    engine: Engine,
    *,
    issuer: str,
    subject: str,
    name: str,
    is_admin: bool | None,
    group_names: Sequence[str] | None,
    until: datetime.datetime,
    is_confirmed: bool,
) -> tuple[Any, list[str]]:
    """Return the user of a subject, who is made if the subject is new, and groups left out.

    `is_admin` and `group_names` are what the provider says, and hold `until` then; None leaves what
    there is. Groups left out are the operator's. Raises `NameTaken`, and `InvalidRequest` for a
    name that no user can have.
    """
    with writing(engine) as connection:
        take_lock(connection, AdvisoryLock.LOG_IN)
        user_id = _user_id(connection, issuer, subject)
        if user_id is None:
            user_id = _new_user(connection, name, is_confirmed=is_confirmed)
            _insert(connection, issuer, subject, user_id)
        if is_admin is not None:
            _set_admin(connection, user_id, is_admin, until)
        left_out = []
        if group_names is not None:
            left_out = groups.replace_claimed(connection, user_id, group_names, until)
    return accounts.by_id(engine, user_id), left_out


def link(engine: Engine, *, name: str, issuer: str, subject: str) -> None:
    """Let a subject log in as an existing user. Raises `InvalidRequest`."""
    row = accounts.require_user(engine, name)
    if not 1 <= len(subject) <= 255:
        raise InvalidRequest(
            [FieldProblem("subject", "is no subject", "write the one that the log-in named")]
        )
    with writing(engine) as connection:
        take_lock(connection, AdvisoryLock.LOG_IN)
        known = _user_id(connection, issuer, subject)
        if known is not None and known != row.id:
            raise InvalidRequest(
                [FieldProblem("subject", "is another user already", "unlink that user first")]
            )
        if known is None:
            _insert(connection, issuer, subject, row.id)


def unlink(engine: Engine, name: str) -> int:
    """Keep every subject of a user from logging in as this user; return how many there were.

    The user's sessions end. Tokens stay, as after another password.
    """
    row = accounts.require_user(engine, name)
    accounts.change_user(engine, name)
    with writing(engine) as connection:
        return connection.execute(SUBJECTS.delete().where(SUBJECTS.c.user_id == row.id)).rowcount


def of_user(engine: Engine, user_id: int) -> Sequence[Any]:
    """Return the subjects of a user."""
    with reading(engine) as connection:
        return connection.execute(
            sa.select(SUBJECTS).where(SUBJECTS.c.user_id == user_id).order_by(SUBJECTS.c.created_at)
        ).all()


def use_once(engine: Engine, what: str, until: datetime.datetime) -> bool:
    """Return whether a secret text is used for the first time; it is remembered until then."""
    digest, moment = hashlib.sha256(what.encode("utf-8", "replace")).hexdigest(), now()
    try:
        with writing(engine) as connection:
            connection.execute(USED.delete().where(USED.c.until <= moment))
            connection.execute(USED.insert().values(digest=digest, until=until))
    except sa.exc.IntegrityError:
        return False
    return True


def _user_id(connection: Connection, issuer: str, subject: str) -> int | None:
    user_id: int | None = connection.scalar(
        sa.select(SUBJECTS.c.user_id).where(
            SUBJECTS.c.issuer == issuer, SUBJECTS.c.subject == subject
        )
    )
    return user_id


def _insert(connection: Connection, issuer: str, subject: str, user_id: int) -> None:
    connection.execute(
        SUBJECTS.insert().values(issuer=issuer, subject=subject, user_id=user_id, created_at=now())
    )


def _new_user(connection: Connection, name: str, *, is_confirmed: bool) -> int:
    if problems := accounts.name_problems(name):
        raise InvalidRequest(problems)
    taken = sa.select(USERS.c.id).where(sa.func.lower(USERS.c.name) == name.lower())
    if connection.scalar(taken) is not None:
        raise NameTaken(name)
    return accounts.insert_user(connection, name, "", is_confirmed=is_confirmed)


def _set_admin(
    connection: Connection, user_id: int, is_admin: bool, until: datetime.datetime
) -> None:
    """Write what the provider says; a right that goes or comes ends the sessions of before."""
    mine = USERS.c.id == user_id
    changed = connection.execute(
        USERS.update()
        .where(mine, USERS.c.is_admin.is_not(is_admin))
        .values(is_admin=is_admin, credential_version=USERS.c.credential_version + 1)
    )
    if is_admin or changed.rowcount:
        end = until if is_admin else None
        connection.execute(USERS.update().where(mine).values(admin_until=end))
