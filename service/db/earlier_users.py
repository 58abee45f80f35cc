"""Take over the users of the first service, which this one replaces: their passwords stay valid.

Its table `user` holds names, and Werkzeug's hashes of passwords, which are good here as well. The
table stays as it is. Its builds and images are not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder.errors import UserError
from service.db import accounts
from service.db.database import AdvisoryLock, take_lock, writing

_log = logging.getLogger(__name__)

TABLE = sa.table("user", sa.column("id"), sa.column("username"), sa.column("password_hash"))
_HASH = re.compile(
    r"(?:pbkdf2:sha(?:1|256|512):[1-9][0-9]{0,7}|scrypt:[1-9][0-9]{0,7}:[1-9][0-9]?:[1-9][0-9]?)"
    r"\$[A-Za-z0-9]{1,64}\$(?:[0-9a-f]{2}){16,64}"
)
_PUBLISHED_SALT = "$C3Pi318CALHEy587$"
"""Of the user `test` in the `db.sqlite` that the first service's source came with: anybody may look
for its password.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakenOver:
    """The users who may log in now, and those who may not, with the reason."""

    names: Sequence[str]
    left: Sequence[str]

    def __str__(self) -> str:
        parts = [f"Users taken over from the first service: {len(self.names)}."]
        if self.left:
            parts += [f"Left out {'; '.join(self.left)}.", "Make them with `users add NAME`."]
        return " ".join(parts)


def take_over_at_first(engine: Engine) -> None:
    """Take over the users of a database that the first service made, while it has no others."""
    if not _is_of_first_service(engine):
        return
    with writing(engine) as connection:
        take_lock(connection, AdvisoryLock.MIGRATE)  # several processes start at once
        if connection.scalar(sa.select(accounts.USERS.c.id).limit(1)) is not None:
            return
        taken_over = _take_over(connection, connection.execute(_ALL).all())
    _log.warning("%s docs/migrate.md tells what else changes.", taken_over)


def take_over_from(engine: Engine, file: Path) -> TakenOver:
    """Take over the users of the first service's SQLite file. Raises `UserError`."""
    try:
        url = f"file:{quote(str(file.absolute()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(url, uri=True)) as source:
            rows = source.execute(str(_ALL)).fetchall()
    except sqlite3.Error as error:
        raise UserError(
            f"The users in {file} cannot be read: {error}.",
            hint="Name the db.sqlite of the first service.",
        ) from None
    with writing(engine) as connection:
        return _take_over(connection, rows)


_ALL = sa.select(TABLE.c.username, TABLE.c.password_hash).order_by(TABLE.c.id)


def _is_of_first_service(engine: Engine) -> bool:
    inspected = sa.inspect(engine)
    if not inspected.has_table(TABLE.name):
        return False
    columns = {column["name"] for column in inspected.get_columns(TABLE.name)}
    return {column.name for column in TABLE.columns} <= columns


def _take_over(connection: Connection, rows: Iterable[Any]) -> TakenOver:
    """Make a user of every row, a name and a hash, that can be one and is not there."""
    known = {name.lower() for name in connection.scalars(sa.select(accounts.USERS.c.name))}
    names, left = [], []
    for name, password_hash in rows:
        if (why := _obstacle(name, password_hash, known)) is None:
            accounts.insert_user(connection, name, password_hash)
            known.add(name.lower())
            names.append(name)
        else:
            left.append(f"{str(name)[:64]!r}, {why}")
    return TakenOver(names=names, left=left)


def _obstacle(name: Any, password_hash: Any, known: set[str]) -> str | None:
    """What keeps a row of the first service from becoming a user."""
    if not isinstance(name, str) or accounts.name_problems(name):
        return "whose name cannot be one here"
    if name.lower() in known:
        return "whose name is taken, in whichever case"
    if not isinstance(password_hash, str) or not _HASH.fullmatch(password_hash):
        return "whose password is not kept in a way that can be checked"
    if _PUBLISHED_SALT in password_hash:
        return "whose password was published with the source"
    return None
