"""Read and write who may see private images.

A private image is visible to its owner, who has a finished build of it, and to those with whom the
owner shares it: users, and the members of groups. Its names hold the owner's, so no two users'
images meet in one. An identity, and a SIF, may be of a private and of a site's image at once: then
everybody may see it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.state import BuildState
from service.db.database import now, reading, writing
from service.db.groups import GROUPS, MEMBERS, belongs
from service.db.models import PRIVATE, SITE, GroupShare, Share
from service.db.tables import BUILDS, RUNS, USERS

SHARES: sa.Table = Share.__table__
GROUP_SHARES: sa.Table = GroupShare.__table__
MAX_USERS, MAX_GROUPS = 100, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audience:
    """With whom an image is shared, by names, besides its owner."""

    users: Sequence[str] = ()
    groups: Sequence[str] = ()


_KEPT = sa.and_(BUILDS.c.state == BuildState.FINISHED, BUILDS.c.deleted_at.is_(None))


def granted(user_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a row of `BUILDS` gives its image to this user."""
    shared = sa.exists().where(
        SHARES.c.image_id == BUILDS.c.image_id,
        SHARES.c.owner_id == BUILDS.c.user_id,
        SHARES.c.user_id == user_id,
    )
    shared_with_group = sa.exists().where(
        GROUP_SHARES.c.image_id == BUILDS.c.image_id,
        GROUP_SHARES.c.owner_id == BUILDS.c.user_id,
        MEMBERS.c.group_id == GROUP_SHARES.c.group_id,
        belongs(user_id),
    )
    return sa.and_(_KEPT, sa.or_(BUILDS.c.user_id == user_id, shared, shared_with_group))


def private_filenames(engine: Engine, user_id: int) -> frozenset[str]:
    """Return the file names of the private images that a user may see."""
    rows = (
        sa.select(BUILDS.c.filename)
        .where(BUILDS.c.visibility == PRIVATE, BUILDS.c.filename.is_not(None), granted(user_id))
        .distinct()
    )
    with reading(engine) as connection:
        return frozenset(connection.scalars(rows))


def may_see_filename(engine: Engine, user_id: int, spellings: Sequence[str]) -> bool:
    """Return whether a user may see the private image with one of these file names."""
    return _exists(engine, BUILDS.c.filename.in_(spellings), granted(user_id))


def may_see_sif(engine: Engine, user_id: int, sha256: str, *, unknown: bool) -> bool:
    """Return whether a user may see a SIF; `unknown` is the answer for one that no build has."""
    return _may_see(engine, user_id, BUILDS.c.sha256 == sha256, unknown)


def may_see_identity(engine: Engine, user_id: int, identity: str, *, unknown: bool) -> bool:
    """Return whether a user may see what is stored of an identity, as `may_see_sif`."""
    of_it = sa.and_(RUNS.c.id == BUILDS.c.run_id, RUNS.c.identity == identity)
    return _may_see(engine, user_id, sa.exists().where(of_it), unknown)


def owned_image(engine: Engine, user_id: int, spellings: Sequence[str]) -> str | None:
    """Return the image that a user owns under one of these file names, or None."""
    owned = sa.select(BUILDS.c.image_id).where(
        BUILDS.c.filename.in_(spellings),
        BUILDS.c.visibility == PRIVATE,
        BUILDS.c.user_id == user_id,
        _KEPT,
    )
    with reading(engine) as connection:
        image_id: str | None = connection.scalar(owned.limit(1))
        return image_id


def shared_with(engine: Engine, owner_id: int, image_id: str) -> Audience:
    """Return with whom an image is shared."""
    users = (
        sa.select(USERS.c.name)
        .join_from(SHARES, USERS, SHARES.c.user_id == USERS.c.id)
        .where(SHARES.c.owner_id == owner_id, SHARES.c.image_id == image_id)
        .order_by(USERS.c.name)
    )
    with reading(engine) as connection:
        names = connection.scalars(users).all()
        groups = connection.scalars(_groups_of(owner_id, image_id).order_by(GROUPS.c.name)).all()
    return Audience(users=tuple(names), groups=tuple(groups))


def share(engine: Engine, owner_id: int, image_id: str, audience: Audience) -> None:
    """Share an image with these users and groups, and with nobody else.

    Raises `InvalidRequest` with every name that is no user's, and every group that is none of the
    owner's and is not shared with yet.
    """
    with writing(engine) as connection:
        users = _ids(connection, sa.func.lower(USERS.c.name), USERS.c.id, _lowered(audience.users))
        own = sa.select(GROUPS.c.id).join_from(GROUPS, MEMBERS).where(belongs(owner_id))
        shared = _groups_of(owner_id, image_id).with_only_columns(GROUPS.c.id)
        groups = _ids(
            connection,
            GROUPS.c.name,
            GROUPS.c.id,
            audience.groups,
            sa.or_(GROUPS.c.id.in_(own), GROUPS.c.id.in_(shared)),
        )
        problems = [
            FieldProblem(f"users[{at}]", "is no user of this service", "write a user's name")
            for at, name in enumerate(_lowered(audience.users))
            if name not in users
        ] + [
            FieldProblem(f"groups[{at}]", "is no group of yours", "write the name of one of them")
            for at, name in enumerate(audience.groups)
            if name not in groups
        ]
        if problems:
            raise InvalidRequest(problems)
        others = {user_id for user_id in users.values() if user_id != owner_id}
        _replace(connection, SHARES, owner_id, image_id, "user_id", others)
        _replace(connection, GROUP_SHARES, owner_id, image_id, "group_id", set(groups.values()))


def _groups_of(owner_id: int, image_id: str) -> sa.Select[Any]:
    return (
        sa.select(GROUPS.c.name)
        .join_from(GROUP_SHARES, GROUPS)
        .where(GROUP_SHARES.c.owner_id == owner_id, GROUP_SHARES.c.image_id == image_id)
    )


def _lowered(names: Iterable[str]) -> list[str]:
    return [name.lower() for name in names]


def _ids(
    connection: Connection,
    name: sa.ColumnElement[str],
    number: sa.ColumnElement[int],
    wanted: Iterable[str],
    *conditions: sa.ColumnElement[bool],
) -> dict[str, int]:
    rows = connection.execute(sa.select(name, number).where(name.in_(list(wanted)), *conditions))
    return {name: number for name, number in rows}  # noqa: C416 - typed


def _replace(
    connection: Connection,
    table: sa.Table,
    owner_id: int,
    image_id: str,
    column: str,
    wanted: set[int],
) -> None:
    connection.execute(
        table.delete().where(table.c.owner_id == owner_id, table.c.image_id == image_id)
    )
    rows = [
        {"image_id": image_id, "owner_id": owner_id, column: one, "created_at": now()}
        for one in sorted(wanted)
    ]
    if rows:
        connection.execute(table.insert(), rows)


def held_private_filenames(engine: Engine) -> frozenset[str]:
    """Return the file names of private images of which somebody still has a build."""
    held = sa.select(BUILDS.c.filename).where(
        BUILDS.c.visibility == PRIVATE, BUILDS.c.filename.is_not(None), _KEPT
    )
    with reading(engine) as connection:
        return frozenset(connection.scalars(held.distinct()))


def _may_see(engine: Engine, user_id: int, of_it: Any, unknown: bool) -> bool:
    with reading(engine) as connection:
        kinds = set(connection.scalars(sa.select(BUILDS.c.visibility).where(of_it).distinct()))
    if not kinds:
        return unknown
    return SITE in kinds or _exists(engine, of_it, granted(user_id))


def _exists(engine: Engine, *conditions: sa.ColumnElement[bool]) -> bool:
    with reading(engine) as connection:
        found = connection.execute(sa.select(BUILDS.c.id).where(*conditions).limit(1))
        return found.first() is not None
