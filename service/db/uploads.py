"""Write down which folders users have sent; no other module writes them.

A folder is known by its git tree. Two users who send the same have a row each, and one folder.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder.errors import ErrorCode, LimitReached
from service.db.database import now, reading, writing
from service.db.models import UploadRow
from service.db.tables import BUILDS, USERS, locked

UPLOADS: sa.Table = UploadRow.__table__


def record(
    engine: Engine,
    user_id: int,
    tree: str,
    size_bytes: int,
    *,
    max_bytes: int,
    max_bytes_of_all: int | None = None,
) -> list[str]:
    """Note that a user has sent a folder, and return the trees that made room for it.

    These are the user's least recently used ones, and then, where all users' folders together take
    more than they may, those of anybody; but none that a build waits for. Raises `LimitReached`
    (`QUOTA_EXCEEDED`) when that is not enough.
    """
    with writing(engine) as connection:
        connection.execute(locked(sa.select(USERS.c.id).where(USERS.c.id == user_id)))
        if _touch(connection, user_id, tree):
            return []
        gone = _make_room(connection, user_id, size_bytes, max_bytes)
        if max_bytes_of_all is not None:
            gone += _make_room_of_all(connection, tree, size_bytes, max_bytes_of_all)
        moment = now()
        connection.execute(
            UPLOADS.insert().values(
                user_id=user_id, tree=tree, size_bytes=size_bytes, created_at=moment, used_at=moment
            )
        )
        return gone


def use(engine: Engine, user_id: int, tree: str) -> bool:
    """Note that a user asks for a folder again; return whether it is one that the user has sent."""
    with writing(engine) as connection:
        return _touch(connection, user_id, tree)


def expire(engine: Engine, keep_s: float) -> int:
    """Forget who sent the folders that were not used for so long, and return how many those are."""
    with writing(engine) as connection:
        return int(connection.execute(UPLOADS.delete().where(*_expired(keep_s))).rowcount)


def count_expired(engine: Engine, keep_s: float) -> int:
    """Return how many folders of users `expire` would forget."""
    with reading(engine) as connection:
        counted = sa.select(sa.func.count()).select_from(UPLOADS).where(*_expired(keep_s))
        return connection.scalar(counted) or 0


def known_trees(engine: Engine) -> frozenset[str]:
    """Return the trees that somebody has sent, or that a build waits for."""
    with reading(engine) as connection:
        sent = connection.scalars(sa.select(UPLOADS.c.tree).distinct())
        return frozenset(sent) | frozenset(connection.scalars(_waited_for()))


def _touch(connection: Connection, user_id: int, tree: str) -> bool:
    changed = connection.execute(
        UPLOADS.update()
        .where(UPLOADS.c.user_id == user_id, UPLOADS.c.tree == tree)
        .values(used_at=now())
    )
    return bool(changed.rowcount)


def _make_room(connection: Connection, user_id: int, size_bytes: int, max_bytes: int) -> list[str]:
    rows = connection.execute(
        sa.select(UPLOADS.c.tree, UPLOADS.c.size_bytes)
        .where(UPLOADS.c.user_id == user_id)
        .order_by(UPLOADS.c.used_at, UPLOADS.c.tree)
    ).all()
    gone = _making_room(connection, rows, size_bytes - max_bytes)
    if gone is None:
        raise LimitReached(
            f"Your folders may take {max_bytes} bytes, and this one takes {size_bytes}.",
            hint="Send a smaller folder, or wait until builds of your other folders have ended.",
            code=ErrorCode.QUOTA_EXCEEDED,
        )
    _delete(connection, user_id, gone)
    return gone


def _make_room_of_all(
    connection: Connection, tree: str, size_bytes: int, max_bytes: int
) -> list[str]:
    """Forget the folders that nobody has used for longest; each is on the disk once."""
    rows = connection.execute(
        sa.select(UPLOADS.c.tree, sa.func.max(UPLOADS.c.size_bytes).label("size_bytes"))
        .where(UPLOADS.c.tree != tree)
        .group_by(UPLOADS.c.tree)
        .order_by(sa.func.max(UPLOADS.c.used_at), UPLOADS.c.tree)
    ).all()
    gone = _making_room(connection, rows, size_bytes - max_bytes)
    if gone is None:
        raise LimitReached(
            "The folders of all users take what they may at the moment.",
            hint="Try again when other builds have ended, or put the step into a registry.",
            code=ErrorCode.QUOTA_EXCEEDED,
        )
    connection.execute(UPLOADS.delete().where(UPLOADS.c.tree.in_(gone)))
    return gone


def _making_room(connection: Connection, rows: Sequence[Any], over_bytes: int) -> list[str] | None:
    """Return the first of these folders without which all take no more than there may be.

    `over_bytes` is how much more than that there would be without any of them. None is returned if
    even all that no build waits for are too few.
    """
    over_bytes += sum(row.size_bytes for row in rows)
    if over_bytes <= 0:
        return []
    needed = set(connection.scalars(_waited_for()))
    gone: list[str] = []
    for row in rows:
        if over_bytes > 0 and row.tree not in needed:
            over_bytes -= row.size_bytes
            gone.append(row.tree)
    return gone if over_bytes <= 0 else None


def _delete(connection: Connection, user_id: int, trees: Iterable[str]) -> None:
    connection.execute(
        UPLOADS.delete().where(UPLOADS.c.user_id == user_id, UPLOADS.c.tree.in_(list(trees)))
    )


def _expired(keep_s: float) -> tuple[sa.ColumnElement[bool], ...]:
    horizon = now() - datetime.timedelta(seconds=keep_s)
    return UPLOADS.c.used_at < horizon, UPLOADS.c.tree.not_in(_waited_for())


def _waited_for() -> sa.Select[tuple[str]]:
    """Select the trees of builds that have not ended."""
    tree = BUILDS.c.inputs[("step", "tree")].as_string()
    return sa.select(tree).where(BUILDS.c.state.is_(None), tree.is_not(None))
