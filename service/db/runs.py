"""Move runs for workers: claims, states, heartbeats and the end of a run."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from image_builder.errors import Cancelled, CicError, ErrorCode, ServiceError
from image_builder.state import ACTIVE, TERMINAL, BuildState, may_move
from service.db import notices
from service.db.builds import Outcome
from service.db.database import AdvisoryLock, clock, now, reading, take_lock, writing
from service.db.tables import (
    BUILDS,
    RUNNING,
    RUNS,
    USERS,
    Kind,
    failure,
    lock_run,
    locked,
    wanted,
    wanting,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delivery:
    """What those builds of one run get that want the same names, pushed or not.

    `request` and `inputs` are those of one of them. A build that joins and wants the same while it
    is made gets it, too.
    """

    image_id: str
    filename: str | None
    push: bool
    request: Mapping[str, Any]
    inputs: Mapping[str, Any]


class ClaimLost(Exception):
    """The run is no longer this worker's: another worker has it, or it has ended."""


def claim(
    engine: Engine, worker: str, *, max_active_per_user: int, kinds: Collection[Kind] | None = None
) -> str | None:
    """Take the next pending run for `worker` and return its id; None when there is nothing to do.

    Users take turns: first who has the fewest runs going on, then who was served longest ago, then
    whose build waits longest. `kinds` are those that are for the worker; None: all.
    """
    with writing(engine, durable=False) as connection:
        take_lock(
            connection, AdvisoryLock.CLAIM
        )  # a count of the runs of a user must include those that other workers claim
        run_id = connection.scalar(locked(_next_run(max_active_per_user, kinds), skip=True))
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
    """Return what to make next for the builds of a run; None when all have what they asked for."""
    with reading(engine) as connection:
        _check_claim(connection, run_id, worker, lock=False)
        first = connection.execute(
            wanting(
                run_id,
                BUILDS.c.image_id,
                BUILDS.c.filename,
                BUILDS.c.push,
                BUILDS.c.request,
                BUILDS.c.inputs,
            ).limit(1)
        ).first()
    return None if first is None else Delivery(**first._mapping)


def requested_at(engine: Engine, run_id: str, delivery: Delivery) -> float | None:
    """Return when this delivery was last requested, or None if no build waits for it any more.

    It is in seconds since 1970. A build that joined a run makes its name newer.
    """
    submitted_at = BUILDS.c.inputs["submitted_at"].as_float()
    with reading(engine) as connection:
        waiting, newest = connection.execute(
            sa.select(sa.func.count(), sa.func.max(submitted_at))
            .select_from(BUILDS)
            .where(*_waiting_for(run_id, delivery))
        ).one()
    return (newest or 0.0) if waiting else None


def deliver(
    engine: Engine,
    run_id: str,
    worker: str,
    delivery: Delivery,
    outcome: Outcome,
    *,
    log_bytes: int | None = None,
) -> None:
    """End the builds of a delivery as FINISHED, with the first `log_bytes` of the log as theirs.

    Raises `ClaimLost`.
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
        _end_builds(
            connection,
            _waiting_for(run_id, delivery),
            state=BuildState.FINISHED,
            filename=outcome.filename,
            sha256=outcome.sha256,
            size_bytes=outcome.size_bytes,
            pushed_digest=outcome.pushed_digest,
            warnings=list(outcome.warnings),
            log_bytes=log_bytes,
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
        waiting = _waiting_for(run_id, delivery)
        _end_builds(connection, waiting, **failure(error), log_bytes=log_bytes)


def finish(engine: Engine, run_id: str, worker: str) -> bool:
    """End a run whose builds have all ended, and return True; False when a build joined meanwhile.

    Raises `ClaimLost`.
    """
    with writing(engine) as connection:
        state = _check_claim(connection, run_id, worker)
        if wanted(connection, run_id):
            return False
        _close(connection, run_id, state)
        return True


def fail(engine: Engine, run_id: str, worker: str | None, error: CicError) -> None:
    """End a run, and every build that waits for it, as FAILED.

    `worker` None fails it whichever worker has it. Raises `ClaimLost`.
    """
    with writing(engine) as connection:
        if worker is None:
            lock_run(connection, run_id)
        else:
            _check_claim(connection, run_id, worker)
        _fail(connection, run_id, error)


def hand_back(engine: Engine, run_id: str, worker: str) -> None:
    """Queue a run again that a stopping worker could not finish; the attempt does not count.

    Raises `ClaimLost`.
    """
    with writing(engine) as connection:
        _check_claim(connection, run_id, worker)
        _queue_again(connection, run_id, attempts=RUNS.c.attempts - 1)


def retry_later(
    engine: Engine, run_id: str, worker: str, error: CicError, *, delay_s: float, max_retries: int
) -> bool:
    """Queue a run again that failed for a passing reason; return False after too many attempts.

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
        notices.tell_of_delay(connection, run_id, error.code.value)
        return True


def move(engine: Engine, run_id: str, worker: str, state: BuildState, stage: str) -> None:
    """Let a run enter a state; a move that the life of a build does not have is ignored.

    Raises `ClaimLost`.
    """
    times = {
        BuildState.BUILDING: {"building_at": now()},
        BuildState.CONVERTING: {"converting_at": now()},
    }
    with writing(engine, durable=False) as connection:
        current = _check_claim(connection, run_id, worker)
        values: dict[str, Any] = {"stage": stage, "heartbeat_at": clock(connection)}
        if may_move(current, state) and state not in (BuildState.PENDING, *TERMINAL):
            values |= {"state": state} | times.get(state, {})
        connection.execute(
            RUNS.update().where(RUNS.c.id == run_id, RUNS.c.state == current).values(**values)
        )


def progress(engine: Engine, run_id: str, worker: str, done: int, total: int, what: str) -> None:
    """Record how far a run's install is."""
    with writing(engine, durable=False) as connection:
        connection.execute(
            RUNS.update()
            .where(RUNS.c.id == run_id, RUNS.c.worker == worker)
            .values(
                progress_done=done, progress_total=total, progress_what=what[:200], stage="install"
            )
        )


def heartbeat(engine: Engine, worker: str) -> dict[str, bool]:
    """Record that `worker` is alive; return its runs, each with whether it is to be cancelled."""
    with writing(engine, durable=False) as connection:
        mine = (RUNS.c.worker == worker, RUNS.c.state.in_(RUNNING))
        connection.execute(RUNS.update().where(*mine).values(heartbeat_at=clock(connection)))
        rows = connection.execute(sa.select(RUNS.c.id, RUNS.c.cancel_requested).where(*mine))
        return {row.id: row.cancel_requested for row in rows}


def cancel_requests(engine: Engine, worker: str) -> dict[str, bool]:
    """Return the worker's runs, each with whether it is to be cancelled; write nothing."""
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
    """Take runs from workers that are gone, and return how many there were.

    Each is queued again, or fails after `max_attempts`. Gone is every other worker of this `host`
    (there is one at a time), and one elsewhere without a heartbeat for `lost_after_s`. Without a
    `host`, or without `lost_after_s`, only the others.
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
            locked(sa.select(RUNS.c.id, RUNS.c.attempts).where(gone), skip=True)
        ).all()
        for row in rows:
            _requeue_or_fail(connection, row.id, row.attempts, max_attempts)
        return len(rows)


def release(engine: Engine, run_id: str, worker: str, *, max_attempts: int) -> None:
    """Take one run from a live worker that does not know it any more, as `reconcile` does."""
    with writing(engine) as connection:
        attempts = connection.scalar(
            locked(
                sa.select(RUNS.c.attempts).where(
                    RUNS.c.id == run_id, RUNS.c.worker == worker, RUNS.c.state.in_(RUNNING)
                )
            )
        )
        if attempts is not None:
            _requeue_or_fail(connection, run_id, attempts, max_attempts)


def queue(engine: Engine, *, limit: int = 100) -> tuple[list[Any], list[Any]]:
    """Return the runs that wait and those that go on, oldest first, each with its first build."""
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
    """Return whether no run is pending or going on."""
    with reading(engine) as connection:
        return not connection.scalar(sa.select(sa.exists().where(RUNS.c.state.in_(ACTIVE))))


def run_ends(engine: Engine) -> dict[str, float | None]:
    """Return when every run ended, in seconds since 1970; None for one that has not."""
    with reading(engine) as connection:
        return {
            run_id: ended_at.timestamp() if ended_at and state in TERMINAL else None
            for run_id, state, ended_at in connection.execute(
                sa.select(RUNS.c.id, RUNS.c.state, RUNS.c.ended_at)
            )
        }


def _next_run(max_active_per_user: int, kinds: Collection[Kind] | None) -> sa.Select[Any]:
    """Select the run whose turn it is.

    Of the users who wait for one run, the one that was served least counts.
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
    """Count, for each user, the runs that go on, and find when the last one was begun for them.

    A run is charged to all who want it.
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


def _waiting_for(run_id: str, delivery: Delivery) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        BUILDS.c.run_id == run_id,
        BUILDS.c.state.is_(None),
        BUILDS.c.image_id == delivery.image_id,
        BUILDS.c.filename.is_not_distinct_from(delivery.filename),
        BUILDS.c.push.is_(delivery.push),
    )


def _check_claim(
    connection: Connection, run_id: str, worker: str, *, lock: bool = True
) -> BuildState:
    """The run's state, if it is this worker's and has not ended; else `ClaimLost`."""
    run = sa.select(RUNS.c.state, RUNS.c.worker).where(RUNS.c.id == run_id)
    row = connection.execute(locked(run) if lock else run).first()
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
        else failure(Cancelled("No build waits for this run any more."))
    )
    connection.execute(
        RUNS.update()
        .where(RUNS.c.id == run_id, RUNS.c.state.in_(expected))
        .values(**values, ended_at=now())
    )


def _requeue_or_fail(connection: Connection, run_id: str, attempts: int, max_attempts: int) -> None:
    """A run whose worker is gone: queued again, or ended."""
    if not wanted(connection, run_id):
        _close(connection, run_id, *RUNNING)
    elif attempts < max_attempts:
        _queue_again(connection, run_id)
        notices.tell_of_delay(connection, run_id, ErrorCode.LOST_WORKER.value)
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
    values = failure(error)
    _end_builds(connection, (BUILDS.c.run_id == run_id, BUILDS.c.state.is_(None)), **values)
    connection.execute(
        RUNS.update()
        .where(RUNS.c.id == run_id, RUNS.c.state.in_(ACTIVE))
        .values(**values, ended_at=now())
    )


def _end_builds(
    connection: Connection, chosen: Sequence[sa.ColumnElement[bool]], **values: Any
) -> None:
    """End builds, and write down whom that is to be told."""
    ended = connection.scalars(
        BUILDS.update().where(*chosen).values(**values, ended_at=now()).returning(BUILDS.c.id)
    )
    notices.tell_of_ended(connection, ended.all())
