"""Builds and runs in the database: the only writer of a state.

Every move is `UPDATE … WHERE id AND state`, for a worker also `AND worker`: when no row changed,
somebody else was there first, and the caller stops. What is read in order to write is locked, in
this order: user, run, builds. Works on plain connections, with or without an application.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder.errors import Cancelled, CicError, ErrorCode, LimitReached, ServiceError
from image_builder.state import ACTIVE, TERMINAL, BuildState, may_move
from service.database import Turn, clock, now, reading, turn, writing
from service.models import AuditEvent, Build, Run, User
from service.routing import Kind

_log = logging.getLogger(__name__)

RUNS: sa.Table = Run.__table__
BUILDS: sa.Table = Build.__table__
USERS: sa.Table = User.__table__
AUDIT: sa.Table = AuditEvent.__table__

RUNNING = ACTIVE - {BuildState.PENDING}
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
    RUNS.c.audit,
)
SHOWN = sa.select(*SHOWN_COLUMNS).join_from(BUILDS, RUNS, BUILDS.c.run_id == RUNS.c.id)
_SHOW_ONE = SHOWN.where(BUILDS.c.id == sa.bindparam("build_id"), BUILDS.c.deleted_at.is_(None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewBuild:
    """An accepted request, as it is written down. `request` and `inputs` are JSON objects."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delivery:
    """What builds of one run get that want the same names, pushed or not. `request` and `inputs`
    are one of theirs.

    Whoever joins and wants the same while it is made gets it, too.
    """

    image_id: str
    filename: str | None
    push: bool
    request: Mapping[str, Any]
    inputs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a build was given."""

    identity: str
    filename: str | None
    sha256: str | None
    size_bytes: int | None
    pushed_digest: str | None
    audit: Mapping[str, Any] | None
    warnings: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one user may have at a time."""

    queued_builds: int


class ClaimLost(Exception):
    """The run is no longer this worker's: somebody else has it, or it has ended."""


def create_or_join(engine: Engine, new: NewBuild, limits: Limits) -> tuple[str, str]:
    """Write a build down and return its id and its run's.

    It joins the active run that makes the same thing, if there is one.

    Raises `LimitReached` (`QUOTA_EXCEEDED`) when the user has too much already.
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
    """Write down a build of something that exists already: FINISHED from the beginning."""
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
        return _insert_build(
            connection,
            new,
            run_id,
            state=BuildState.FINISHED,
            ended_at=now(),
            sha256=outcome.sha256,
            size_bytes=outcome.size_bytes,
            pushed_digest=outcome.pushed_digest,
        )


def build(engine: Engine, build_id: str) -> Any | None:
    """A build with its run, as `SHOWN` has them."""
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
    """A page of a user's builds, newest first, and how many there are."""
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


def tagged_images(engine: Engine) -> list[Any]:
    """Everybody's images that Docker can use, newest first: those that were pushed, and those
    without a SIF.

    Of a name the one that the image registry holds, else the newest.
    """
    newest = (
        sa.func.row_number()
        .over(
            partition_by=BUILDS.c.image_id,
            order_by=(BUILDS.c.pushed_digest.is_(None), BUILDS.c.ended_at.desc(), BUILDS.c.id),
        )
        .label("place")
    )
    found = (
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
        )
        .subquery()
    )
    with reading(engine) as connection:
        return list(
            connection.execute(
                sa.select(found)
                .where(found.c.place == 1)
                .order_by(found.c.ended_at.desc(), found.c.image_id)
            )
        )


def withdraw(
    engine: Engine, build_id: str, reason: str, *, log_bytes: int | None = None
) -> str | None:
    """End a build as cancelled. Returns the id of its run if that is to stop, as nobody wants it
    any more.

    Where others still want the run, the build keeps the first `log_bytes` of its log. A build that
    has ended stays as it is.
    """
    with writing(engine) as connection:
        run_id = connection.scalar(sa.select(BUILDS.c.run_id).where(BUILDS.c.id == build_id))
        _lock_run(connection, str(run_id))
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
                ended_at=now(),
            )
        )
        if run_id is None or not ended.rowcount:
            return None
        if _wanted(connection, run_id):
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
                ended_at=now(),
            )
        )
        return str(run_id)


def delete_build(engine: Engine, build_id: str) -> bool:
    """Hide an ended build from its user. False while it has not ended."""
    with writing(engine) as connection:
        return bool(
            connection.execute(
                BUILDS.update()
                .where(BUILDS.c.id == build_id, BUILDS.c.state.is_not(None))
                .values(deleted_at=now())
            ).rowcount
        )


def claim(
    engine: Engine, worker: str, *, max_active_per_user: int, kinds: Collection[Kind] | None = None
) -> str | None:
    """Take the next pending run for `worker` and return its id; None when there is nothing to do.

    Users take turns: first who has the fewest runs going on, then who was served longest ago, then
    whose build waits longest. `kinds` are those that are for the worker; None: all.
    """
    with writing(engine) as connection:
        turn(connection, Turn.CLAIM)  # who counts a user's runs must see those that others claim
        run_id = connection.scalar(_locked(_next_run(max_active_per_user, kinds), skip=True))
        if run_id is None:
            return None
        taken = connection.execute(
            RUNS.update()
            .where(RUNS.c.id == run_id, RUNS.c.state == BuildState.PENDING)
            .values(
                state=BuildState.STARTED,
                worker=worker,
                heartbeat_at=clock(connection),
                attempts=RUNS.c.attempts + 1,
                started_at=now(),
                building_at=None,
                converting_at=None,
                not_before=None,
                stage="prepare",
                message=None,
                progress_done=None,
                progress_total=None,
                progress_what=None,
            )
        )
        return str(run_id) if taken.rowcount else None


def next_delivery(engine: Engine, run_id: str, worker: str) -> Delivery | None:
    """What to make next for those who still want something of the run; None when all have what they
    asked for.
    """
    with reading(engine) as connection:
        _check_claim(connection, run_id, worker, lock=False)
        first = connection.execute(
            _wanting(
                run_id,
                BUILDS.c.image_id,
                BUILDS.c.filename,
                BUILDS.c.push,
                BUILDS.c.request,
                BUILDS.c.inputs,
            ).limit(1)
        ).first()
    return None if first is None else Delivery(**first._mapping)


def is_wanted(engine: Engine, run_id: str, delivery: Delivery) -> bool:
    """Whether a build still waits for this delivery."""
    with reading(engine) as connection:
        return bool(
            connection.scalar(sa.select(sa.exists().where(*_waiting_for(run_id, delivery))))
        )


def deliver(
    engine: Engine,
    run_id: str,
    worker: str,
    delivery: Delivery,
    outcome: Outcome,
    *,
    log_bytes: int | None = None,
) -> None:
    """End the builds of a delivery as FINISHED; theirs are the first `log_bytes` of the log. Raises
    `ClaimLost`.
    """
    with writing(engine) as connection:
        _check_claim(connection, run_id, worker)
        connection.execute(
            RUNS.update()
            .where(RUNS.c.id == run_id)
            .values(
                identity=outcome.identity,
                audit=dict(outcome.audit) if outcome.audit is not None else None,
            )
        )
        connection.execute(
            BUILDS.update()
            .where(*_waiting_for(run_id, delivery))
            .values(
                state=BuildState.FINISHED,
                filename=outcome.filename,
                sha256=outcome.sha256,
                size_bytes=outcome.size_bytes,
                pushed_digest=outcome.pushed_digest,
                warnings=list(outcome.warnings),
                log_bytes=log_bytes,
                ended_at=now(),
            )
        )


def fail_delivery(
    engine: Engine,
    run_id: str,
    worker: str,
    delivery: Delivery,
    error: CicError,
    *,
    log_bytes: int | None = None,
) -> None:
    """End the builds of one delivery as FAILED, with their part of the log; the others go on.
    Raises `ClaimLost`.
    """
    with writing(engine) as connection:
        _check_claim(connection, run_id, worker)
        connection.execute(
            BUILDS.update()
            .where(*_waiting_for(run_id, delivery))
            .values(**_failure(error), log_bytes=log_bytes, ended_at=now())
        )


def finish(engine: Engine, run_id: str, worker: str) -> bool:
    """End a run whose builds have all ended. False when somebody joined meanwhile. Raises
    `ClaimLost`.
    """
    with writing(engine) as connection:
        state = _check_claim(connection, run_id, worker)
        if _wanted(connection, run_id):
            return False
        _close(connection, run_id, state)
        return True


def fail(engine: Engine, run_id: str, worker: str | None, error: CicError) -> None:
    """End a run, and every build that waits for it, as FAILED. `worker` None: whoever has it.
    Raises `ClaimLost`.
    """
    with writing(engine) as connection:
        if worker is None:
            _lock_run(connection, run_id)
        else:
            _check_claim(connection, run_id, worker)
        _fail(connection, run_id, error)


def hand_back(engine: Engine, run_id: str, worker: str) -> None:
    """Queue a run again that a stopping worker could not finish; the attempt does not count. Raises
    `ClaimLost`.
    """
    with writing(engine) as connection:
        _check_claim(connection, run_id, worker)
        _queue_again(connection, run_id, attempts=RUNS.c.attempts - 1)


def retry_later(
    engine: Engine, run_id: str, worker: str, error: CicError, *, delay_s: float, max_retries: int
) -> bool:
    """Queue a run again that failed for a passing reason. False when that was done often enough.
    Raises `ClaimLost`.
    """
    with writing(engine) as connection:
        _check_claim(connection, run_id, worker)
        retries = connection.scalar(sa.select(RUNS.c.retries).where(RUNS.c.id == run_id)) or 0
        if retries >= max_retries:
            return False
        later = now() + datetime.timedelta(seconds=delay_s * 3**retries)
        _queue_again(
            connection,
            run_id,
            attempts=RUNS.c.attempts - 1,
            retries=retries + 1,
            not_before=later,
            message=f"{error} It is tried again.",
        )
        return True


def move(engine: Engine, run_id: str, worker: str, state: BuildState, stage: str) -> None:
    """A run enters a state; a move that the life of a build does not have is none. Raises
    `ClaimLost`.
    """
    times = {
        BuildState.BUILDING: {"building_at": now()},
        BuildState.CONVERTING: {"converting_at": now()},
    }
    with writing(engine) as connection:
        current = _check_claim(connection, run_id, worker)
        values: dict[str, Any] = {"stage": stage, "heartbeat_at": clock(connection)}
        if may_move(current, state) and state not in (BuildState.PENDING, *TERMINAL):
            values |= {"state": state} | times.get(state, {})
        connection.execute(
            RUNS.update().where(RUNS.c.id == run_id, RUNS.c.state == current).values(**values)
        )


def progress(engine: Engine, run_id: str, worker: str, done: int, total: int, what: str) -> None:
    """How far a run's install is."""
    with writing(engine) as connection:
        connection.execute(
            RUNS.update()
            .where(RUNS.c.id == run_id, RUNS.c.worker == worker)
            .values(
                progress_done=done, progress_total=total, progress_what=what[:200], stage="install"
            )
        )


def heartbeat(engine: Engine, worker: str) -> dict[str, bool]:
    """Say that `worker` lives; returns its runs, each with whether it is to be cancelled."""
    with writing(engine) as connection:
        mine = (RUNS.c.worker == worker, RUNS.c.state.in_(RUNNING))
        connection.execute(RUNS.update().where(*mine).values(heartbeat_at=clock(connection)))
        rows = connection.execute(sa.select(RUNS.c.id, RUNS.c.cancel_requested).where(*mine))
        return {row.id: row.cancel_requested for row in rows}


def cancel_requests(engine: Engine, worker: str) -> dict[str, bool]:
    """The worker's runs, each with whether it is to be cancelled, without writing anything."""
    with reading(engine) as connection:
        rows = connection.execute(
            sa.select(RUNS.c.id, RUNS.c.cancel_requested).where(
                RUNS.c.worker == worker, RUNS.c.state.in_(RUNNING)
            )
        )
        return {row.id: row.cancel_requested for row in rows}


def reconcile(
    engine: Engine,
    *,
    host: str | None,
    worker: str | None,
    lost_after_s: float | None,
    max_attempts: int,
) -> int:
    """Take runs from workers that are gone: queue them again, or fail them after `max_attempts`;
    returns how many.

    Gone is every other worker of this `host` (there is one at a time), and one elsewhere without a
    heartbeat for `lost_after_s`. Without a `host`, or without `lost_after_s`, only the others.
    """
    with reading(engine) as connection:
        signs: list[sa.ColumnElement[bool]] = []
        if host is not None:
            signs.append(
                sa.and_(
                    RUNS.c.worker.startswith(f"{host}:", autoescape=True), RUNS.c.worker != worker
                )
            )
        if lost_after_s is not None:
            silent_since = clock(connection) - datetime.timedelta(seconds=lost_after_s)
            signs.append(
                sa.and_(RUNS.c.heartbeat_at < silent_since, RUNS.c.worker.is_distinct_from(worker))
            )
        gone = sa.and_(RUNS.c.state.in_(RUNNING), sa.or_(*signs))
        if not connection.scalar(sa.select(sa.exists().where(gone))):
            return 0
    with writing(engine) as connection:
        rows = connection.execute(
            _locked(sa.select(RUNS.c.id, RUNS.c.attempts).where(gone), skip=True)
        ).all()
        for row in rows:
            _take_up(connection, row.id, row.attempts, max_attempts)
        return len(rows)


def release(engine: Engine, run_id: str, worker: str, *, max_attempts: int) -> None:
    """As `reconcile`, for one run of a worker that lives and knows nothing of it any more."""
    with writing(engine) as connection:
        attempts = connection.scalar(
            _locked(
                sa.select(RUNS.c.attempts).where(
                    RUNS.c.id == run_id, RUNS.c.worker == worker, RUNS.c.state.in_(RUNNING)
                )
            )
        )
        if attempts is not None:
            _take_up(connection, run_id, attempts, max_attempts)


def queue(engine: Engine, *, limit: int = 100) -> tuple[list[Any], list[Any]]:
    """The runs that wait and those that go on, the oldest first, each with the first build that
    wants it.
    """
    first = (
        sa.select(
            BUILDS.c.run_id,
            sa.func.min(BUILDS.c.image_id).label("image_id"),
            sa.func.count().label("builds"),
        )
        .where(BUILDS.c.state.is_(None))
        .group_by(BUILDS.c.run_id)
        .subquery()
    )
    rows = sa.select(
        RUNS.c.id,
        RUNS.c.state,
        RUNS.c.platform,
        RUNS.c.target,
        RUNS.c.stage,
        RUNS.c.message,
        RUNS.c.worker,
        RUNS.c.attempts,
        RUNS.c.created_at,
        RUNS.c.started_at,
        USERS.c.name.label("user"),
        first.c.image_id,
        first.c.builds,
    ).select_from(
        RUNS.join(first, first.c.run_id == RUNS.c.id).outerjoin(USERS, USERS.c.id == RUNS.c.user_id)
    )
    with reading(engine) as connection:
        waiting = connection.execute(
            rows.where(RUNS.c.state == BuildState.PENDING).order_by(RUNS.c.created_at).limit(limit)
        ).all()
        running = connection.execute(
            rows.where(RUNS.c.state.in_(RUNNING)).order_by(RUNS.c.started_at).limit(limit)
        ).all()
    return list(waiting), list(running)


def is_idle(engine: Engine) -> bool:
    """Whether no run is pending or going on."""
    with reading(engine) as connection:
        return not connection.scalar(sa.select(sa.exists().where(RUNS.c.state.in_(ACTIVE))))


def run_ends(engine: Engine) -> dict[str, float | None]:
    """When every run ended, in seconds since 1970; None for one that has not."""
    with reading(engine) as connection:
        return {
            run_id: ended_at.timestamp() if ended_at and state in TERMINAL else None
            for run_id, state, ended_at in connection.execute(
                sa.select(RUNS.c.id, RUNS.c.state, RUNS.c.ended_at)
            )
        }


def held_sifs_of(engine: Engine, user_id: int) -> dict[str, int]:
    """The SIFs that one user's builds were given, with their sizes; those of deleted builds do not
    count.
    """
    with reading(engine) as connection:
        return {
            sha256: size_bytes or 0
            for sha256, size_bytes in connection.execute(
                sa.select(BUILDS.c.sha256, sa.func.max(BUILDS.c.size_bytes))
                .where(
                    BUILDS.c.user_id == user_id,
                    BUILDS.c.sha256.is_not(None),
                    BUILDS.c.deleted_at.is_(None),
                )
                .group_by(BUILDS.c.sha256)
            )
        }


def held_sifs(engine: Engine) -> set[str]:
    """The SIFs that were given to builds which their users still see."""
    with reading(engine) as connection:
        return set(
            connection.scalars(
                sa.select(BUILDS.c.sha256)
                .where(BUILDS.c.sha256.is_not(None), BUILDS.c.deleted_at.is_(None))
                .distinct()
            )
        )


def note(
    engine: Engine,
    *,
    user: str | None,
    action: str,
    subject: str | None = None,
    address: str | None = None,
) -> None:
    """Write down who did what, and tell the log."""
    said = {
        "action": action,
        "subject": subject[:300] if subject else None,
        "user": user,
        "address": address,
    }
    _log.info("action=%s subject=%r user=%s address=%s", *said.values(), extra=said)
    with writing(engine) as connection:
        connection.execute(AUDIT.insert().values(at=now(), **said))


def _check_limits(connection: Connection, user_id: int, limits: Limits) -> None:
    connection.execute(_locked(sa.select(USERS.c.id).where(USERS.c.id == user_id)))
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


def _locked(rows: sa.Select[Any], *, skip: bool = False) -> sa.Select[Any]:
    """The rows, kept from other writers until the transaction ends; with `skip`, without those that
    others keep.
    """
    return rows.with_for_update(key_share=True, skip_locked=skip, of=None if not skip else RUNS)


def _lock_run(connection: Connection, run_id: str) -> None:
    connection.execute(_locked(sa.select(RUNS.c.id).where(RUNS.c.id == run_id)))


def _active_run(connection: Connection, new: NewBuild) -> str | None:
    """The run to join. A run that is being cancelled is joined by nobody; a forced one serves
    everybody.
    """
    keys = (new.join_key,) if new.force else (new.join_key, forced(new.join_key))
    found: str | None = connection.scalar(
        _locked(
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
    return found


def forced(join_key: str) -> str:
    """The join key of a run that uses nothing made before."""
    return f"{join_key}:force"


def _finished_run(connection: Connection, identity: str) -> str | None:
    found: str | None = connection.scalar(
        sa.select(RUNS.c.id)
        .where(RUNS.c.identity == identity, RUNS.c.state == BuildState.FINISHED)
        .order_by(RUNS.c.ended_at.desc())
        .limit(1)
    )
    return found


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
            warnings=list(new.warnings),
            created_at=now(),
            **more,
        )
    )
    return build_id


def _next_run(max_active_per_user: int, kinds: Collection[Kind] | None) -> sa.Select[Any]:
    """The run whose turn it is. Of those who wait for one run, whoever has had the least speaks for
    it.
    """
    load, waiting = _load_of_users(), BUILDS.alias("waiting")
    running = sa.func.coalesce(load.c.running, 0)
    chosen = [
        RUNS.c.state == BuildState.PENDING,
        running < max_active_per_user,
        sa.or_(RUNS.c.not_before.is_(None), RUNS.c.not_before <= now()),
    ]
    if kinds is not None:
        chosen.append(sa.tuple_(RUNS.c.platform, RUNS.c.target).in_(list(kinds)))
    return (
        sa.select(RUNS.c.id)
        .select_from(
            RUNS.outerjoin(
                waiting, sa.and_(waiting.c.run_id == RUNS.c.id, waiting.c.state.is_(None))
            ).outerjoin(load, load.c.user_id == waiting.c.user_id)
        )
        .where(*chosen)
        .order_by(
            running,
            load.c.served_at.asc().nulls_first(),
            waiting.c.created_at,
            RUNS.c.created_at,
            RUNS.c.id,
        )
        .limit(1)
    )


def _load_of_users() -> sa.Subquery:
    """How many runs go on for each user, and when one was last begun for them. A run is charged to
    all who want it.
    """
    goes_on = sa.and_(BUILDS.c.state.is_(None), RUNS.c.state.in_(RUNNING))
    return (
        sa.select(
            BUILDS.c.user_id,
            sa.func.count(sa.distinct(sa.case((goes_on, RUNS.c.id)))).label("running"),
            sa.func.max(RUNS.c.started_at).label("served_at"),
        )
        .join_from(BUILDS, RUNS, BUILDS.c.run_id == RUNS.c.id)
        .where(BUILDS.c.created_at > now() - datetime.timedelta(days=2))
        .group_by(BUILDS.c.user_id)
        .subquery()
    )


def _wanting(run_id: str, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """The builds that wait for something of a run, the oldest first.

    Those that are to be pushed come last: the shared part is done then, and who has withdrawn
    meanwhile gets no push.
    """
    return (
        sa.select(*columns)
        .where(BUILDS.c.run_id == run_id, BUILDS.c.state.is_(None))
        .order_by(BUILDS.c.push, BUILDS.c.created_at, BUILDS.c.id)
    )


def _waiting_for(run_id: str, delivery: Delivery) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        BUILDS.c.run_id == run_id,
        BUILDS.c.state.is_(None),
        BUILDS.c.image_id == delivery.image_id,
        BUILDS.c.filename.is_not_distinct_from(delivery.filename),
        BUILDS.c.push.is_(delivery.push),
    )


def _wanted(connection: Connection, run_id: str) -> bool:
    return connection.execute(_wanting(run_id, BUILDS.c.id).limit(1)).first() is not None


def _check_claim(
    connection: Connection, run_id: str, worker: str, *, lock: bool = True
) -> BuildState:
    """The run's state, if it is this worker's and has not ended; else `ClaimLost`."""
    run = sa.select(RUNS.c.state, RUNS.c.worker).where(RUNS.c.id == run_id)
    row = connection.execute(_locked(run) if lock else run).first()
    if row is None or row.worker != worker or row.state not in RUNNING:
        raise ClaimLost(run_id)
    state: BuildState = row.state
    return state


def _close(connection: Connection, run_id: str, *expected: BuildState) -> None:
    """End a run whose builds have all ended: as they did, the best of them."""
    builds = connection.execute(
        sa.select(BUILDS.c.state, BUILDS.c.message, BUILDS.c.hint, BUILDS.c.error_code)
        .where(BUILDS.c.run_id == run_id)
        .order_by(BUILDS.c.state != BuildState.FINISHED, BUILDS.c.ended_at.desc())
    ).first()
    values = (
        dict(builds._mapping)
        if builds is not None
        else _failure(Cancelled("Nobody wants this any more."))
    )
    connection.execute(
        RUNS.update()
        .where(RUNS.c.id == run_id, RUNS.c.state.in_(expected))
        .values(**values, ended_at=now())
    )


def _take_up(connection: Connection, run_id: str, attempts: int, max_attempts: int) -> None:
    """A run whose worker is gone: queued again, or ended."""
    if not _wanted(connection, run_id):
        _close(connection, run_id, *RUNNING)
    elif attempts < max_attempts:
        _queue_again(connection, run_id)
    else:
        _fail(
            connection,
            run_id,
            ServiceError(
                f"The build was begun {attempts} times, and each time its worker died.",
                hint="Ask the operator to look into the service's log.",
                code=ErrorCode.LOST_WORKER,
            ),
        )


def _queue_again(connection: Connection, run_id: str, **values: Any) -> None:
    connection.execute(
        RUNS.update()
        .where(RUNS.c.id == run_id, RUNS.c.state.in_(RUNNING))
        .values(
            **{
                "state": BuildState.PENDING,
                "worker": None,
                "heartbeat_at": None,
                "stage": None,
                "progress_done": None,
                "progress_total": None,
                "progress_what": None,
            }
            | values
        )
    )


def _fail(connection: Connection, run_id: str, error: CicError) -> None:
    values = _failure(error) | {"ended_at": now()}
    connection.execute(
        BUILDS.update().where(BUILDS.c.run_id == run_id, BUILDS.c.state.is_(None)).values(**values)
    )
    connection.execute(
        RUNS.update().where(RUNS.c.id == run_id, RUNS.c.state.in_(ACTIVE)).values(**values)
    )


def _failure(error: CicError) -> dict[str, Any]:
    excerpt = "\n".join(getattr(error, "excerpt", ()))
    return {
        "state": BuildState.FAILED,
        "error_code": error.code.value,
        "hint": error.hint or None,
        "message": f"{error.message}\n{excerpt}" if excerpt else error.message,
    }
