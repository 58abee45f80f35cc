"""The store's promises on a real database: joining, claiming, ending, and what becomes of lost
runs.
"""

from __future__ import annotations

import dataclasses
import datetime
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import Engine

from image_builder.errors import Cancelled, ErrorCode, LimitReached, ServiceError, Unavailable
from image_builder.state import BuildState
from service.db import accounts, tables
from service.db import builds as db_builds
from service.db import runs as db_runs
from service.db.builds import Limits, NewBuild, Outcome
from service.db.database import MIGRATIONS, db, init_database, migrate, now, writing
from service.db.runs import ClaimLost

LIMITS = Limits(queued_builds=1000)
ME, OTHER = "host:me", "host:other"


pytestmark = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def engine(tmp_path: Path, database: str) -> Iterator[Engine]:
    app = Flask("test")
    init_database(app, database)
    migrate(app, tmp_path / "lock")
    with app.app_context():
        for name in ("ada", "bob"):
            with writing(db.engine) as connection:
                connection.execute(
                    accounts.USERS.insert().values(
                        name=name,
                        password_hash="",
                        is_admin=False,
                        is_active=True,
                        is_confirmed=True,
                        credential_version=1,
                        created_at=now(),
                    )
                )
        yield db.engine
        db.engine.dispose()


def new(
    key: str = "one",
    *,
    user: int = 1,
    push: bool = False,
    force: bool = False,
    name: str = "image",
    platform: str = "linux/amd64",
    target: str = "x86_64",
) -> NewBuild:
    identity = f"sha256:{key}"
    return NewBuild(
        user_id=user,
        request={"r": key},
        inputs={},
        join_key=db_builds.forced(identity) if force else identity,
        identity=identity,
        platform=platform,
        target=target,
        force=force,
        image_id=f"{name}:1",
        filename=f"{name}.sif",
        engine="singularity",
        push=push,
        warnings=(),
    )


def outcome(key: str = "one", **values: object) -> Outcome:
    fields: dict = {
        "identity": f"sha256:{key}",
        "filename": "image.sif",
        "sha256": "a" * 64,
        "size_bytes": 10,
        "pushed_digest": None,
        "audit": {"ok": True},
        "warnings": ["careful"],
    }
    return Outcome(**fields | values)


def claim(engine: Engine, worker: str = ME, active: int = 100) -> str | None:
    return db_runs.claim(engine, worker, max_active_per_user=active)


def state(engine: Engine, build_id: str) -> BuildState:
    row = db_builds.build(engine, build_id)
    assert row is not None
    return row.own_state or row.run_state


def finish(engine: Engine, run_id: str, worker: str = ME) -> None:
    while (delivery := db_runs.next_delivery(engine, run_id, worker)) is not None:
        db_runs.deliver(engine, run_id, worker, delivery, outcome())
    assert db_runs.finish(engine, run_id, worker)


def test_builds_of_one_key_share_a_run_until_it_ends(engine: Engine) -> None:
    first, run = db_builds.create_or_join(engine, new(), LIMITS)
    second, same = db_builds.create_or_join(engine, new(user=2), LIMITS)
    assert first != second and run == same
    assert claim(engine) == run and claim(engine) is None
    finish(engine, run)
    assert state(engine, first) == state(engine, second) == BuildState.FINISHED
    assert db_builds.create_or_join(engine, new(), LIMITS)[1] != run


def test_a_forced_build_joins_only_a_forced_run(engine: Engine) -> None:
    _, plain = db_builds.create_or_join(engine, new(), LIMITS)
    _, forced = db_builds.create_or_join(engine, new(force=True), LIMITS)
    assert plain != forced
    assert db_builds.create_or_join(engine, new(force=True), LIMITS)[1] == forced
    assert db_builds.create_or_join(engine, new(), LIMITS)[1] == plain


def test_a_plain_build_joins_a_forced_run(engine: Engine) -> None:
    _, forced = db_builds.create_or_join(engine, new(force=True), LIMITS)
    assert db_builds.create_or_join(engine, new(), LIMITS)[1] == forced


def test_who_joins_a_run_makes_its_name_newer(engine: Engine) -> None:
    def asked(at: float) -> str:
        inputs = {"submitted_at": at}
        return db_builds.create_or_join(engine, dataclasses.replace(new(), inputs=inputs), LIMITS)[
            0
        ]

    first = asked(100.5)
    run = claim(engine)
    assert run is not None
    delivery = db_runs.next_delivery(engine, run, ME)
    assert delivery is not None
    assert db_runs.requested_at(engine, run, delivery) == 100.5
    second = asked(200.5)
    assert db_runs.requested_at(engine, run, delivery) == 200.5
    for build_id in (second, first):
        db_builds.withdraw(engine, build_id, "enough")
    assert db_runs.requested_at(engine, run, delivery) is None


def test_nobody_joins_a_run_that_is_being_cancelled(engine: Engine) -> None:
    build, run = db_builds.create_or_join(engine, new(), LIMITS)
    claim(engine)
    assert db_builds.withdraw(engine, build, "no more") == run
    _, other = db_builds.create_or_join(engine, new(), LIMITS)
    assert other != run
    assert db_runs.cancel_requests(engine, ME) == {run: True}


def test_a_pending_run_that_nobody_wants_is_never_begun(engine: Engine) -> None:
    build, run = db_builds.create_or_join(engine, new(), LIMITS)
    assert db_builds.withdraw(engine, build, "no more") == run
    assert claim(engine) is None
    assert state(engine, build) == BuildState.FAILED


def test_withdrawing_leaves_the_run_to_others(engine: Engine) -> None:
    hers, run = db_builds.create_or_join(engine, new(), LIMITS)
    his, _ = db_builds.create_or_join(engine, new(user=2), LIMITS)
    claim(engine)
    assert db_builds.withdraw(engine, hers, "no more") is None
    assert db_runs.cancel_requests(engine, ME) == {run: False}
    finish(engine, run)
    assert (state(engine, hers), state(engine, his)) == (BuildState.FAILED, BuildState.FINISHED)


def test_each_name_is_a_delivery_of_its_own(engine: Engine) -> None:
    builds = [
        db_builds.create_or_join(engine, new(name=name), LIMITS)[0] for name in ("a", "b", "a")
    ]
    run = claim(engine)
    assert run
    first = db_runs.next_delivery(engine, run, ME)
    assert first is not None and first.image_id == "a:1"
    late, _ = db_builds.create_or_join(engine, new(name="a"), LIMITS)
    db_runs.deliver(engine, run, ME, first, outcome(filename="a.sif"))
    assert not db_runs.finish(engine, run, ME)
    assert [state(engine, build) for build in (*builds, late)] == [
        BuildState.FINISHED,
        BuildState.STARTED,
        BuildState.FINISHED,
        BuildState.FINISHED,
    ]
    second = db_runs.next_delivery(engine, run, ME)
    assert second is not None and second.image_id == "b:1"
    db_runs.fail_delivery(
        engine, run, ME, second, ServiceError("The registry said no.", code=ErrorCode.PUSH_FAILED)
    )
    assert db_runs.finish(engine, run, ME)
    row = db_builds.build(engine, builds[1])
    assert row is not None
    assert (row.own_state, row.error_code, row.run_state) == (
        BuildState.FAILED,
        "PUSH_FAILED",
        BuildState.FINISHED,
    )


def test_pushes_come_after_the_shared_part(engine: Engine) -> None:
    db_builds.create_or_join(engine, new(push=True), LIMITS)
    db_builds.create_or_join(engine, new(), LIMITS)
    run = claim(engine)
    assert run
    first = db_runs.next_delivery(engine, run, ME)
    assert first is not None and not first.push
    db_runs.deliver(engine, run, ME, first, outcome())
    second = db_runs.next_delivery(engine, run, ME)
    assert second is not None and second.push


def test_a_run_whose_deliveries_all_failed_has_failed(engine: Engine) -> None:
    build, run = db_builds.create_or_join(engine, new(), LIMITS)
    claim(engine)
    delivery = db_runs.next_delivery(engine, run, ME)
    assert delivery is not None
    db_runs.fail_delivery(
        engine, run, ME, delivery, ServiceError("No.", code=ErrorCode.PUSH_FAILED)
    )
    assert db_runs.finish(engine, run, ME)
    row = db_builds.build(engine, build)
    assert row is not None and (row.run_state, row.run_message) == (BuildState.FAILED, "No.")


def test_only_the_worker_that_claimed_a_run_may_move_it(engine: Engine) -> None:
    _, run = db_builds.create_or_join(engine, new(), LIMITS)
    claim(engine)
    delivery = db_runs.next_delivery(engine, run, ME)
    assert delivery is not None
    for attempt in (
        lambda: db_runs.move(engine, run, OTHER, BuildState.BUILDING, "build"),
        lambda: db_runs.deliver(engine, run, OTHER, delivery, outcome()),
        lambda: db_runs.finish(engine, run, OTHER),
        lambda: db_runs.hand_back(engine, run, OTHER),
        lambda: db_runs.fail(engine, run, OTHER, Cancelled("x")),
    ):
        with pytest.raises(ClaimLost):
            attempt()
    finish(engine, run)
    with pytest.raises(ClaimLost):
        db_runs.move(engine, run, ME, BuildState.BUILDING, "build")


def test_states_only_move_forwards(engine: Engine) -> None:
    build, run = db_builds.create_or_join(engine, new(), LIMITS)
    claim(engine)
    building, converting = BuildState.BUILDING, BuildState.CONVERTING
    for entered, expected in (
        (building, building),
        (converting, converting),
        (building, converting),
        (BuildState.FINISHED, converting),
    ):
        db_runs.move(engine, run, ME, entered, "x")
        assert state(engine, build) == expected


def test_users_take_turns(engine: Engine) -> None:
    hers = [db_builds.create_or_join(engine, new(f"a{n}"), LIMITS)[1] for n in range(5)]
    his = db_builds.create_or_join(engine, new("b", user=2), LIMITS)[1]
    assert [claim(engine) for _ in range(3)] == [hers[0], his, hers[1]]


def test_a_hundred_requests_of_one_user_hold_up_nobody(engine: Engine) -> None:
    """Also not who asks for the very last thing of the hundred: a run is as urgent as whoever waits
    for it.
    """
    hers = [db_builds.create_or_join(engine, new(f"a{n}"), LIMITS)[1] for n in range(100)]
    assert claim(engine) == hers[0]
    his, same = db_builds.create_or_join(engine, new("a99", user=2), LIMITS)
    own = db_builds.create_or_join(engine, new("b", user=2), LIMITS)[1]
    assert same == hers[99]
    assert [claim(engine) for _ in range(3)] == [hers[99], own, hers[1]]
    assert db_builds.build(engine, his).run_state is BuildState.STARTED  # type: ignore[union-attr]


def test_a_shared_run_counts_for_each_who_wants_it(engine: Engine) -> None:
    shared = db_builds.create_or_join(engine, new("s"), LIMITS)[1]
    db_builds.create_or_join(engine, new("s", user=2, name="other"), LIMITS)
    assert claim(engine, active=1) == shared
    for user in (1, 2):
        db_builds.create_or_join(engine, new(f"next{user}", user=user), LIMITS)
    assert claim(engine, active=1) is None
    finish(engine, shared)
    assert claim(engine, active=1) is not None


def test_a_user_has_so_many_at_a_time(engine: Engine) -> None:
    for n in range(3):
        db_builds.create_or_join(engine, new(f"a{n}"), LIMITS)
    assert claim(engine, active=1) is not None
    assert claim(engine, active=1) is None
    assert claim(engine, active=2) is not None


def test_a_user_may_have_so_many_that_have_not_ended(engine: Engine) -> None:
    for n in range(2):
        db_builds.create_or_join(engine, new(f"a{n}"), Limits(queued_builds=2))
    with pytest.raises(LimitReached) as caught:
        db_builds.create_or_join(engine, new("c"), Limits(queued_builds=2))
    assert caught.value.code is ErrorCode.QUOTA_EXCEEDED
    db_builds.create_or_join(engine, new("c", user=2), Limits(queued_builds=2))


def test_runs_of_workers_that_are_gone_are_begun_again_and_then_failed(engine: Engine) -> None:
    build, run = db_builds.create_or_join(engine, new(), LIMITS)
    for attempt in range(3):
        assert claim(engine, f"host:{attempt}") == run
        assert (
            db_runs.reconcile(
                engine, host="host", worker="host:new", lost_after_s=60, max_attempts=3
            )
            == 1
        )
    row = db_builds.build(engine, build)
    assert row is not None
    assert (row.own_state, row.error_code) == (BuildState.FAILED, "LOST_WORKER")
    assert claim(engine) is None


def test_workers_of_other_hosts_are_believed_while_they_speak(engine: Engine) -> None:
    _, run = db_builds.create_or_join(engine, new(), LIMITS)
    claim(engine, "elsewhere:1")

    def reconcile(silence_s: float) -> int:
        return db_runs.reconcile(
            engine, host="host", worker=ME, lost_after_s=silence_s, max_attempts=3
        )

    assert reconcile(60) == 0
    with writing(engine) as connection:
        connection.execute(
            tables.RUNS.update().values(heartbeat_at=now() - datetime.timedelta(seconds=61))
        )
    assert reconcile(60) == 1
    with pytest.raises(ClaimLost):  # it comes back, and finds that it has no run any more
        db_runs.move(engine, run, "elsewhere:1", BuildState.BUILDING, "build")


def test_a_lost_run_that_was_delivered_has_finished(engine: Engine) -> None:
    build, run = db_builds.create_or_join(engine, new(), LIMITS)
    claim(engine)
    delivery = db_runs.next_delivery(engine, run, ME)
    assert delivery is not None
    db_runs.deliver(engine, run, ME, delivery, outcome())
    db_runs.reconcile(engine, host="host", worker="host:new", lost_after_s=60, max_attempts=3)
    row = db_builds.build(engine, build)
    assert row is not None and row.run_state is BuildState.FINISHED


def test_handing_back_costs_no_attempt(engine: Engine) -> None:
    build, run = db_builds.create_or_join(engine, new(), LIMITS)
    for _ in range(5):
        assert claim(engine) == run
        db_runs.hand_back(engine, run, ME)
        assert state(engine, build) is BuildState.PENDING
    assert claim(engine, OTHER) == run
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT attempts FROM runs").scalar() == 1


def test_what_passes_is_tried_again_later_and_not_for_ever(engine: Engine) -> None:
    build, run = db_builds.create_or_join(engine, new(), LIMITS)
    error = Unavailable("Docker is away.", code=ErrorCode.DOCKER_UNAVAILABLE)
    for again in (True, True, False):
        assert claim(engine) == run
        assert db_runs.retry_later(engine, run, ME, error, delay_s=0, max_retries=2) is again
    db_runs.fail(engine, run, ME, error)
    row = db_builds.build(engine, build)
    assert row is not None and row.error_code == "DOCKER_UNAVAILABLE"
    db_builds.create_or_join(engine, new("two"), LIMITS)
    second = claim(engine)
    assert second
    assert db_runs.retry_later(engine, second, ME, error, delay_s=3600, max_retries=2)
    assert claim(engine) is None


def together(count: int, work: Callable[[int], object]) -> list[Any]:
    """What `work` returns for each number, when as many threads begin it at once."""
    ready = threading.Barrier(count)

    def begin(number: int) -> object:
        ready.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


def test_no_run_is_claimed_twice_and_no_user_has_too_many(engine: Engine) -> None:
    runs = {
        db_builds.create_or_join(engine, new(f"{n}", user=1 + n % 2), LIMITS)[1] for n in range(12)
    }
    taken = [run for run in together(8, lambda n: claim(engine, f"host{n}:1", active=3)) if run]
    assert len(taken) == len(set(taken)) == 6 and set(taken) <= runs


def test_many_who_ask_for_the_same_at_once_share_one_run(engine: Engine) -> None:
    made = together(8, lambda n: db_builds.create_or_join(engine, new(user=1 + n % 2), LIMITS))
    assert len({run for _, run in made}) == 1 and len({build for build, _ in made}) == 8


def test_a_quota_holds_among_requests_that_come_at_once(engine: Engine) -> None:
    def ask(number: int) -> bool:
        try:
            return bool(db_builds.create_or_join(engine, new(f"{number}"), Limits(queued_builds=3)))
        except LimitReached:
            return False

    assert sum(together(8, ask)) == 3


def test_who_joins_while_a_run_ends_is_served_or_gets_a_run_of_their_own(engine: Engine) -> None:
    for round_number in range(10):
        key = f"round{round_number}"
        _, run = db_builds.create_or_join(engine, new(key), LIMITS)
        assert claim(engine) == run
        delivery = db_runs.next_delivery(engine, run, ME)
        assert delivery is not None
        db_runs.deliver(engine, run, ME, delivery, outcome())

        def work(number: int, key: str = key, run: str = run) -> Any:
            return (
                db_runs.finish(engine, run, ME)
                if number == 0
                else db_builds.create_or_join(engine, new(key), LIMITS)
            )

        has_ended, (late, late_run) = together(2, work)
        row = db_builds.build(engine, late)
        assert row is not None and (late_run != run or not has_ended)
        if late_run == run:
            finish(engine, run)
        else:
            assert claim(engine) == late_run
            finish(engine, late_run)
        assert state(engine, late) is BuildState.FINISHED


def test_a_run_stops_when_its_last_builds_withdraw_at_once(engine: Engine) -> None:
    for round_number in range(10):
        made = [db_builds.create_or_join(engine, new(f"{round_number}"), LIMITS) for _ in range(2)]
        stopped = together(
            2, lambda n, made=made: db_builds.withdraw(engine, made[n][0], "no more")
        )
        assert sorted(map(str, stopped)) == sorted(["None", made[0][1]])
        assert claim(engine) is None


def test_the_migrations_and_the_tables_are_the_same(engine: Engine) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from service.db.database import HEAD

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD
    with engine.connect() as connection, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*one_user_of_a_name"
        )  # SQLite does not tell what it is over
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, db.metadata) == []
