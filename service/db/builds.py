"""Write and read builds for users: requests, joins, cancellations and lists.

Every move is `UPDATE … WHERE id AND state`, for a worker also `AND worker`: when no row changed,
somebody else was there first, and the caller stops. What is read in order to write is locked, in
this order: user, run, builds. Works on plain connections, with or without an application.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder import hints
from image_builder.errors import ErrorCode, LimitReached
from image_builder.state import ACTIVE, BuildState
from service.db import notices
from service.db.database import now, reading, writing
from service.db.image_names import require_own_name
from service.db.models import SITE
from service.db.tables import BUILDS, RUNS, USERS, lock_run, locked, wanted, wanting

STATUS = sa.func.coalesce(BUILDS.c.state, RUNS.c.state)
"""Where a build stands: its own end, else its run's state."""
SHOWN_COLUMNS = (
    BUILDS.c.id,
    BUILDS.c.user_id,
    BUILDS.c.run_id,
    BUILDS.c.request,
    BUILDS.c.image_id,
    BUILDS.c.filename,
    BUILDS.c.push,
    BUILDS.c.visibility,
    BUILDS.c.warnings,
    BUILDS.c.state.label("own_state"),
    BUILDS.c.message,
    BUILDS.c.hint,
    BUILDS.c.error_code,
    BUILDS.c.sha256,
    BUILDS.c.size_bytes,
    BUILDS.c.pushed_digest,
    BUILDS.c.log_bytes,
    BUILDS.c.created_at,
    BUILDS.c.ended_at,
    RUNS.c.identity,
    RUNS.c.state.label("run_state"),
    RUNS.c.stage,
    RUNS.c.message.label("run_message"),
    RUNS.c.progress_done,
    RUNS.c.progress_total,
    RUNS.c.progress_what,
    RUNS.c.started_at,
    RUNS.c.building_at,
    RUNS.c.converting_at,
    RUNS.c.ended_at.label("run_ended_at"),
    RUNS.c.audit,
)
SHOWN = sa.select(*SHOWN_COLUMNS).join_from(BUILDS, RUNS, BUILDS.c.run_id == RUNS.c.id)
_SHOW_ONE = SHOWN.where(BUILDS.c.id == sa.bindparam("build_id"), BUILDS.c.deleted_at.is_(None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewBuild:
    """An accepted request as it is stored. `request` and `inputs` are JSON objects."""

    user_id: int
    request: Mapping[str, Any]
    inputs: Mapping[str, Any]
    join_key: str
    identity: str | None
    platform: str
    target: str
    force: bool
    image_id: str
    filename: str | None
    engine: str
    push: bool
    warnings: Sequence[str]
    visibility: str = SITE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a build made for its user."""

    identity: str
    filename: str | None
    sha256: str | None
    size_bytes: int | None
    pushed_digest: str | None
    audit: Mapping[str, Any] | None
    warnings: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one user may have at a time. `stored_bytes` None: as much as they like."""

    queued_builds: int
    stored_bytes: int | None = None
    removed_sifs: frozenset[str] = frozenset()
    """SIFs of the user's builds that are not there any more."""
    image_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Sizes of the images without a SIF that are there, by identity."""


def create_or_join(engine: Engine, new: NewBuild, limits: Limits) -> tuple[str, str]:
    """Write a build to the database and return its id and its run's.

    It joins the active run that makes the same thing, if there is one.

    Raises `LimitReached` (`QUOTA_EXCEEDED`) when the user has too much already, and `UserError`
    when the image's name is another request's.
    """
    for _ in range(5):
        try:
            with writing(engine) as connection:
                _check_limits(connection, new.user_id, limits)
                run_id = _active_run(connection, new) or _insert_run(connection, new)
                return _insert_build(connection, new, run_id), run_id
        except (
            sa.exc.IntegrityError
        ):  # another writer made the run meanwhile (not on SQLite, where writers queue)
            continue
    raise LimitReached("Too many requests for the same image at once.", hint="Try again.")


def create_finished(engine: Engine, new: NewBuild, limits: Limits, outcome: Outcome) -> str:
    """Write a FINISHED build of something that exists already, and return its id."""
    with writing(engine) as connection:
        _check_limits(connection, new.user_id, limits)
        run_id = _finished_run(connection, outcome.identity)
        if run_id is None:
            run_id = _insert_run(
                connection,
                new,
                state=BuildState.FINISHED,
                started_at=now(),
                ended_at=now(),
                audit=outcome.audit,
            )
        build_id = _insert_build(
            connection,
            new,
            run_id,
            state=BuildState.FINISHED,
            ended_at=now(),
            sha256=outcome.sha256,
            size_bytes=outcome.size_bytes,
            pushed_digest=outcome.pushed_digest,
        )
        notices.tell_of_ended(connection, [build_id], with_mail=False)
        return build_id


def build(engine: Engine, build_id: str) -> Any | None:
    """Return a build with its run, as `SHOWN` selects them, or None."""
    with reading(engine) as connection:
        return connection.execute(_SHOW_ONE, {"build_id": build_id}).first()


def builds_of(
    engine: Engine,
    user_id: int,
    *,
    status: BuildState | None = None,
    page: int = 1,
    per_page: int = 20,
) -> tuple[list[Any], int]:
    """Return a page of a user's builds, newest first, and how many there are."""
    chosen: list[sa.ColumnElement[bool]] = [
        BUILDS.c.user_id == user_id,
        BUILDS.c.deleted_at.is_(None),
    ]
    if status is not None:
        chosen.append(STATUS.is_not_distinct_from(status))
    counted = (
        sa.select(sa.func.count())
        .select_from(BUILDS.join(RUNS, BUILDS.c.run_id == RUNS.c.id))
        .where(*chosen)
    )
    rows = (
        SHOWN.where(*chosen)
        .order_by(BUILDS.c.created_at.desc(), BUILDS.c.id)
        .limit(per_page)
        .offset((page - 1) * per_page)
    )
    with reading(engine) as connection:
        return list(connection.execute(rows)), connection.scalar(counted) or 0


def is_pushed(engine: Engine, image_id: str, identity: str) -> bool:
    """Return whether an image of this identity was pushed to the image registry under its name."""
    pushed = (
        sa.select(BUILDS.c.id)
        .join(RUNS, RUNS.c.id == BUILDS.c.run_id)
        .where(BUILDS.c.image_id == image_id, RUNS.c.identity == identity)
        .where(BUILDS.c.pushed_digest.is_not(None))
        .limit(1)
    )
    with reading(engine) as connection:
        return connection.execute(pushed).first() is not None


def tagged_images(engine: Engine, visible: sa.ColumnElement[bool]) -> list[Any]:
    """Return the images that Docker can use, newest first, of the site or of `visible` builds.

    These are the ones that were pushed, and those without a SIF. Of a name, it is the one that the
    image registry holds, else the newest.
    """
    newest = (
        sa.func.row_number()
        .over(
            partition_by=BUILDS.c.image_id,
            order_by=(BUILDS.c.pushed_digest.is_(None), BUILDS.c.created_at.desc(), BUILDS.c.id),
        )
        .label("place")
    )
    ranked = (
        sa.select(
            BUILDS.c.image_id,
            BUILDS.c.filename,
            BUILDS.c.request,
            BUILDS.c.pushed_digest,
            BUILDS.c.ended_at,
            RUNS.c.platform,
            RUNS.c.identity,
            RUNS.c.audit,
            newest,
        )
        .join_from(BUILDS, RUNS, BUILDS.c.run_id == RUNS.c.id)
        .where(
            BUILDS.c.state == BuildState.FINISHED,
            sa.or_(BUILDS.c.pushed_digest.is_not(None), BUILDS.c.filename.is_(None)),
            sa.or_(BUILDS.c.visibility == SITE, visible),
        )
        .subquery()
    )
    with reading(engine) as connection:
        return list(
            connection.execute(
                sa.select(ranked)
                .where(ranked.c.place == 1)
                .order_by(ranked.c.ended_at.desc(), ranked.c.image_id)
            )
        )


def withdraw(
    engine: Engine, build_id: str, reason: str, *, log_bytes: int | None = None
) -> str | None:
    """End a build as cancelled, and return the id of its run if that is to stop, else None.

    A run stops when no other build wants it. Where others do, the build keeps the first `log_bytes`
    of its log. A build that has ended stays as it is.
    """
    with writing(engine) as connection:
        run_id = connection.scalar(sa.select(BUILDS.c.run_id).where(BUILDS.c.id == build_id))
        lock_run(connection, str(run_id))
        ended = connection.execute(
            BUILDS.update()
            .where(
                BUILDS.c.id == build_id,
                BUILDS.c.state.is_(None),
                sa.exists().where(RUNS.c.id == BUILDS.c.run_id, RUNS.c.state.in_(ACTIVE)),
            )
            .values(
                state=BuildState.FAILED,
                error_code=ErrorCode.CANCELLED.value,
                message=reason,
                hint=hints.usual(ErrorCode.CANCELLED),
                ended_at=now(),
            )
        )
        if run_id is None or not ended.rowcount:
            return None
        notices.tell_of_ended(connection, [build_id], with_mail=False)
        if wanted(connection, run_id):
            connection.execute(
                BUILDS.update().where(BUILDS.c.id == build_id).values(log_bytes=log_bytes)
            )
            return None
        connection.execute(RUNS.update().where(RUNS.c.id == run_id).values(cancel_requested=True))
        connection.execute(
            RUNS.update()
            .where(RUNS.c.id == run_id, RUNS.c.state == BuildState.PENDING)
            .values(
                state=BuildState.FAILED,
                error_code=ErrorCode.CANCELLED.value,
                message=reason,
                hint=hints.usual(ErrorCode.CANCELLED),
                ended_at=now(),
            )
        )
        return str(run_id)


def delete_build(engine: Engine, build_id: str) -> bool:
    """Hide an ended build from its user. Returns False while it has not ended."""
    with writing(engine) as connection:
        return bool(
            connection.execute(
                BUILDS.update()
                .where(BUILDS.c.id == build_id, BUILDS.c.state.is_not(None))
                .values(deleted_at=now())
            ).rowcount
        )


def stored_sifs_of(engine: Engine, user_id: int) -> dict[str, int]:
    """Return the SIFs that count for one user, with their sizes, as `_stored_sifs` selects them."""
    with reading(engine) as connection:
        return _stored_sifs(connection, user_id)


def stored_images_of(engine: Engine, user_id: int) -> set[str]:
    """Return the identities whose images count for one user, as `_stored_images` selects them."""
    with reading(engine) as connection:
        return _stored_images(connection, user_id)


def users_waiting(engine: Engine, run_id: str) -> list[int]:
    """Return the users whose builds wait for a run."""
    with reading(engine) as connection:
        return list(connection.scalars(wanting(run_id, BUILDS.c.user_id)))


def require_room(engine: Engine, user_id: int, limits: Limits) -> None:
    """Raise `LimitReached` (`QUOTA_EXCEEDED`) when a user's SIFs fill the quota."""
    if limits.stored_bytes is not None:
        with reading(engine) as connection:
            _check_stored(connection, user_id, limits)


def held_sifs(engine: Engine) -> set[str]:
    """Return the SIFs of builds that their users still see."""
    with reading(engine) as connection:
        return set(
            connection.scalars(
                sa.select(BUILDS.c.sha256)
                .where(BUILDS.c.sha256.is_not(None), BUILDS.c.deleted_at.is_(None))
                .distinct()
            )
        )


def _check_limits(connection: Connection, user_id: int, limits: Limits) -> None:
    connection.execute(locked(sa.select(USERS.c.id).where(USERS.c.id == user_id)))
    queued = (
        connection.scalar(
            sa.select(sa.func.count())
            .select_from(BUILDS)
            .where(BUILDS.c.user_id == user_id, BUILDS.c.state.is_(None))
        )
        or 0
    )
    if queued >= limits.queued_builds:
        raise LimitReached(
            f"You have {queued} builds that have not ended, and may have {limits.queued_builds}.",
            hint="Wait until some have ended, or cancel some.",
            code=ErrorCode.QUOTA_EXCEEDED,
        )
    _check_stored(connection, user_id, limits)


def _check_stored(connection: Connection, user_id: int, limits: Limits) -> None:
    if limits.stored_bytes is None:
        return
    sifs = _stored_sifs(connection, user_id)
    stored_bytes = sum(sifs[sha256] for sha256 in sifs.keys() - limits.removed_sifs)
    stored_bytes += sum(
        limits.image_bytes.get(identity, 0) for identity in _stored_images(connection, user_id)
    )
    if stored_bytes >= limits.stored_bytes:
        raise LimitReached(
            f"Your images take {stored_bytes} bytes, and may take {limits.stored_bytes}.",
            hint="Delete builds that you do not need. Their images count until clean-up, or the "
            "operator, removes them.",
            code=ErrorCode.QUOTA_EXCEEDED,
        )


def _stored_sifs(connection: Connection, user_id: int) -> dict[str, int]:
    """The SIFs that a user's builds were given, with their sizes.

    One of which the user has deleted every build counts on, unless somebody else still has it:
    what is stored is stored for somebody.
    """
    theirs = BUILDS.alias("theirs")
    somebody_has_it = sa.exists().where(
        theirs.c.sha256 == BUILDS.c.sha256, theirs.c.deleted_at.is_(None)
    )
    rows = connection.execute(
        sa.select(BUILDS.c.sha256, sa.func.max(BUILDS.c.size_bytes))
        .where(
            BUILDS.c.user_id == user_id,
            BUILDS.c.sha256.is_not(None),
            sa.or_(BUILDS.c.deleted_at.is_(None), ~somebody_has_it),
        )
        .group_by(BUILDS.c.sha256)
    )
    return {sha256: size_bytes or 0 for sha256, size_bytes in rows}


def _stored_images(connection: Connection, user_id: int) -> set[str]:
    """The identities of a user's builds that ended with an image for Docker, and without a SIF.

    As with SIFs, what nobody else has counts on when its builds are deleted.
    """
    theirs, their_run = BUILDS.alias("theirs"), RUNS.alias("their_run")
    somebody_has_it = sa.exists().where(
        theirs.c.run_id == their_run.c.id,
        their_run.c.identity == RUNS.c.identity,
        theirs.c.state == BuildState.FINISHED,
        theirs.c.deleted_at.is_(None),
    )
    return set(
        connection.scalars(
            sa.select(RUNS.c.identity)
            .join_from(BUILDS, RUNS, BUILDS.c.run_id == RUNS.c.id)
            .where(
                BUILDS.c.user_id == user_id,
                BUILDS.c.state == BuildState.FINISHED,
                BUILDS.c.sha256.is_(None),
                RUNS.c.identity.is_not(None),
                sa.or_(BUILDS.c.deleted_at.is_(None), ~somebody_has_it),
            )
            .distinct()
        )
    )


def _active_run(connection: Connection, new: NewBuild) -> str | None:
    """Return the run to join, or None.

    No build joins a run that is being cancelled; a forced run serves every build.
    """
    keys = (new.join_key,) if new.force else (new.join_key, forced(new.join_key))
    run_id: str | None = connection.scalar(
        locked(
            sa.select(RUNS.c.id)
            .where(
                RUNS.c.join_key.in_(keys),
                RUNS.c.state.in_(ACTIVE),
                RUNS.c.cancel_requested.is_(False),
            )
            .order_by(RUNS.c.force)
            .limit(1)
        )
    )
    return run_id


def forced(join_key: str) -> str:
    """Return the join key of a run that uses nothing made before."""
    return f"{join_key}:force"


def _finished_run(connection: Connection, identity: str) -> str | None:
    run_id: str | None = connection.scalar(
        sa.select(RUNS.c.id)
        .where(RUNS.c.identity == identity, RUNS.c.state == BuildState.FINISHED)
        .order_by(RUNS.c.ended_at.desc())
        .limit(1)
    )
    return run_id


def _insert_run(
    connection: Connection, new: NewBuild, *, state: BuildState = BuildState.PENDING, **more: Any
) -> str:
    run_id = str(uuid.uuid4())
    connection.execute(
        RUNS.update()
        .where(  # what is being cancelled gives its place away
            RUNS.c.join_key == new.join_key, RUNS.c.state.in_(ACTIVE), RUNS.c.cancel_requested
        )
        .values(join_key=f"{new.join_key[:60]}:{run_id}")
    )
    connection.execute(
        RUNS.insert().values(
            id=run_id,
            join_key=new.join_key,
            identity=new.identity,
            user_id=new.user_id,
            platform=new.platform,
            target=new.target,
            force=new.force,
            state=state,
            attempts=0,
            retries=0,
            cancel_requested=False,
            created_at=now(),
            **more,
        )
    )
    return run_id


def _insert_build(connection: Connection, new: NewBuild, run_id: str, **more: Any) -> str:
    require_own_name(connection, new.image_id, new.request)
    build_id = str(uuid.uuid4())
    connection.execute(
        BUILDS.insert().values(
            id=build_id,
            user_id=new.user_id,
            run_id=run_id,
            request=dict(new.request),
            inputs=dict(new.inputs),
            image_id=new.image_id,
            filename=new.filename,
            engine=new.engine,
            push=new.push,
            visibility=new.visibility,
            warnings=list(new.warnings),
            created_at=now(),
            **more,
        )
    )
    return build_id
