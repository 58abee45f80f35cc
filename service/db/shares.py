"""Read and write who may see private images.

A private image is visible to its owner, who has a finished build of it, and to those with whom the
owner shares it. Its names hold the owner's, so no two users' images meet in one. An identity, and a
SIF, may be of a private and of a site's image at once: then everybody may see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.state import BuildState
from service.db.database import now, reading, writing
from service.db.models import PRIVATE, SITE, Share
from service.db.tables import BUILDS, RUNS, USERS

SHARES: sa.Table = Share.__table__
MAX_USERS = 100

_KEPT = sa.and_(BUILDS.c.state == BuildState.FINISHED, BUILDS.c.deleted_at.is_(None))


def granted(user_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a row of `BUILDS` gives its image to this user."""
    shared = sa.exists().where(
        SHARES.c.image_id == BUILDS.c.image_id,
        SHARES.c.owner_id == BUILDS.c.user_id,
        SHARES.c.user_id == user_id,
    )
    return sa.and_(_KEPT, sa.or_(BUILDS.c.user_id == user_id, shared))


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


def shared_with(engine: Engine, owner_id: int, image_id: str) -> list[str]:
    """Return the names of the users with whom an image is shared."""
    names = (
        sa.select(USERS.c.name)
        .join_from(SHARES, USERS, SHARES.c.user_id == USERS.c.id)
        .where(SHARES.c.owner_id == owner_id, SHARES.c.image_id == image_id)
        .order_by(USERS.c.name)
    )
    with reading(engine) as connection:
        return list(connection.scalars(names))


def share(engine: Engine, owner_id: int, image_id: str, names: Iterable[str]) -> None:
    """Share an image with these users and with nobody else.

    Raises `InvalidRequest` with every name that is no user's.
    """
    wanted = list(dict.fromkeys(name.lower() for name in names))
    lowered = sa.func.lower(USERS.c.name)
    with writing(engine) as connection:
        rows = connection.execute(sa.select(lowered, USERS.c.id).where(lowered.in_(wanted)))
        found: dict[str, int] = {name: user_id for name, user_id in rows}  # noqa: C416 - typed
        problems = [
            FieldProblem(f"users[{at}]", "is no user of this service", "write a user's name")
            for at, name in enumerate(wanted)
            if name not in found
        ]
        if problems:
            raise InvalidRequest(problems)
        connection.execute(
            SHARES.delete().where(SHARES.c.owner_id == owner_id, SHARES.c.image_id == image_id)
        )
        shared = [
            {"image_id": image_id, "owner_id": owner_id, "user_id": user_id, "created_at": now()}
            for user_id in found.values()
            if user_id != owner_id
        ]
        if shared:
            connection.execute(SHARES.insert(), shared)


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
