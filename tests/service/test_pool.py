"""The pool in threads: its bound, what passes and is tried again, stopping, and runs that are taken
from it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.errors import ErrorCode, Interrupted, ServiceError, Unavailable
from image_builder.host.cancellation import CancelToken
from service.db import runs, tables
from service.db.database import DatabaseSilent, make_engine, writing
from service.workers.executors import RunFolder
from service.workers.pool import ALONE_WITHOUT_DATABASE_S, BuildPool, PoolMain
from tests.service.conftest import REQUEST, Api, FakeBuilder, running_app


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    made = make_engine(settings.service.database)
    yield made
    made.dispose()


def changed(settings: Settings, **service: object) -> Settings:
    return settings.model_copy(update={"service": settings.service.model_copy(update=service)})


class CountingBuilder(FakeBuilder):
    """Knows how many builds were going on at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __call__(self, *arguments: object, **more: object) -> object:  # type: ignore[override]
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super().__call__(*arguments, **more)  # type: ignore[arg-type]
        finally:
            with self._lock:
                self.now -= 1


def test_no_more_builds_at_once_than_allowed(settings: Settings) -> None:
    builder = CountingBuilder()
    builder.hold.clear()
    with running_app(settings, builder) as app:
        ada = Api(app)
        targets = ("zen", "zen2", "zen3", "haswell", "skylake")
        ids = [
            ada.submit(machine=REQUEST["machine"] | {"architecture": target}) for target in targets
        ]
        ada.wait(ids[1], "BUILDING")
        builder.hold.set()
        assert {ada.wait(build_id)["status"] for build_id in ids} == {"FINISHED"}
    assert builder.most == settings.library.build.max_concurrent_builds == 2


def test_what_passes_is_tried_again(settings: Settings, builder: FakeBuilder) -> None:
    builder.error = Unavailable(
        "The Docker daemon does not answer.", code=ErrorCode.DOCKER_UNAVAILABLE
    )
    with running_app(changed(settings, retry_delay_s=0.0, max_retries=2), builder) as app:
        ada = Api(app)
        status = ada.wait(ada.submit())
        assert (status["error_code"], len(builder.calls)) == ("DOCKER_UNAVAILABLE", 3)
        builder.error = Interrupted("tar2sqfs")
        status = ada.wait(ada.submit())
        assert (status["error_code"], len(builder.calls)) == ("INTERRUPTED", 6)
        builder.error = DatabaseSilent("The database does not answer.")
        status = ada.wait(ada.submit())
        assert (status["error_code"], len(builder.calls)) == ("INTERNAL", 9)
        builder.error = Unavailable(
            "The base image cannot be had.", code=ErrorCode.BASE_IMAGE_UNAVAILABLE
        )
        assert ada.wait(ada.submit())["error_code"] == "BASE_IMAGE_UNAVAILABLE"
        assert len(builder.calls) == 10


def test_a_registry_that_is_away_is_tried_again_and_one_that_refuses_is_not(
    settings: Settings, builder: FakeBuilder
) -> None:
    builder.error = Unavailable(
        "The image registry cannot be reached.", code=ErrorCode.IMAGE_REGISTRY_UNAVAILABLE
    )
    with running_app(changed(settings, retry_delay_s=0.0, max_retries=2), builder) as app:
        ada = Api(app)
        status = ada.wait(ada.submit())
        assert (status["error_code"], len(builder.calls)) == ("IMAGE_REGISTRY_UNAVAILABLE", 3)
        builder.error = ServiceError(
            "The image registry did not take it.", code=ErrorCode.PUSH_FAILED
        )
        assert ada.wait(ada.submit())["error_code"] == "PUSH_FAILED"
        assert len(builder.calls) == 4


def test_who_withdraws_gets_no_image_of_their_own_while_others_get_theirs(
    settings: Settings, builder: FakeBuilder
) -> None:
    builder.hold.clear()
    with running_app(settings, builder) as app:
        ada = Api(app)
        first, joined = ada.submit(), ada.submit(version="main")
        ada.wait(first, "BUILDING")
        assert ada.status(joined)["status"] == "BUILDING"
        ada("POST", f"/build/{first}/cancel")
        builder.hold.set()
        assert ada.wait(joined)["status"] == "FINISHED"
        assert ada("GET", f"/image/{ada.status(joined)['filename']}").status_code == 200
        assert ada.status(first)["error_code"] == "CANCELLED"
        assert ada("GET", f"/image/{ada.status(first)['filename']}").status_code == 404


def test_a_stopped_pool_hands_back_and_another_goes_on(
    settings: Settings, builder: FakeBuilder, engine: Engine
) -> None:
    builder.hold.clear()
    running = running_app(settings, builder)
    with running as app:
        ada = Api(app)
        build_id = ada.submit()
        ada.wait(build_id, "BUILDING")
        running.pool.shutdown()
        assert ada.status(build_id)["status"] == "PENDING"
        builder.hold.set()
        another = BuildPool(engine, settings, build_image=builder)
        another.start()
        assert ada.wait(build_id)["status"] == "FINISHED"
        assert "goes back to the queue" in ada("GET", f"/build/{build_id}/log").text
        another.shutdown()


def test_a_stopping_pool_lets_builds_end_that_do_so_in_time(
    settings: Settings, builder: FakeBuilder
) -> None:
    builder.hold.clear()
    running = running_app(settings, builder)
    with running as app:
        ada = Api(app)
        build_id = ada.submit()
        ada.wait(build_id, "BUILDING")
        stopping = threading.Thread(target=running.pool.shutdown, args=(60.0,))
        stopping.start()
        later = ada.submit(step_id="other")
        builder.hold.set()
        stopping.join()
        assert (ada.status(build_id)["status"], ada.status(later)["status"]) == (
            "FINISHED",
            "PENDING",
        )


def test_what_is_claimed_while_the_pool_stops_goes_back(
    settings: Settings, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claimed, go_on = runs.claim, threading.Event(), threading.Event()

    def slowly(*arguments: Any, **more: Any) -> str | None:
        run_id = claim(*arguments, **more)
        if run_id is not None:
            claimed.set()
            assert go_on.wait(30)
        return run_id

    monkeypatch.setattr(runs, "claim", slowly)
    builder.hold.clear()
    running = running_app(settings, builder)
    with running as app:
        ada = Api(app)
        build_id = ada.submit()
        assert claimed.wait(30)
        stopping = threading.Thread(target=running.pool.shutdown)
        stopping.start()
        assert running.pool._ended.wait(30)  # it found nothing going on
        go_on.set()
        stopping.join()
        assert running.pool.is_idle() and ada.status(build_id)["status"] == "PENDING"


def test_a_run_that_was_taken_away_is_left_alone(
    settings: Settings, builder: FakeBuilder, engine: Engine
) -> None:
    builder.hold.clear()
    with running_app(settings, builder) as app:
        ada = Api(app)
        build_id = ada.submit()
        ada.wait(build_id, "BUILDING")
        with writing(engine) as connection:
            connection.execute(tables.RUNS.update().values(worker="elsewhere:1"))
        running = app.extensions["cic"].executor
        while not running.is_idle():  # its heartbeat finds out
            threading.Event().wait(0.05)
        assert ada.status(build_id)["status"] == "BUILDING"
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT worker FROM runs").scalar() == "elsewhere:1"


def test_a_run_whose_thread_died_is_begun_again(
    settings: Settings, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.workers.run import Worker

    whole = Worker.run_build
    died: list[str] = []

    def run_build(self: Worker, run_id: str, cancel: CancelToken) -> None:
        if not died:
            died.append(run_id)
            raise RuntimeError("the database was away")
        whole(self, run_id, cancel)

    monkeypatch.setattr(Worker, "run_build", run_build)
    with running_app(settings, builder) as app:
        ada = Api(app)
        assert ada.wait(ada.submit())["status"] == "FINISHED"
    assert died


def test_messages_reach_the_pool_and_locks_tell_who_is_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / ("long" * 25))
    assert not folder.tell_pool(b"wake")
    with folder.listen() as listener:
        assert folder.tell_pool(b"wake")
        assert listener.recv(64) == b"wake"
    assert not folder.tell_pool(b"wake")
    assert not folder.has_web_process()
    held = folder.hold_web_lock()
    assert folder.has_web_process()
    os.close(held)
    assert not folder.has_web_process()


def test_a_pool_alone_with_a_database_that_is_gone_ends_in_the_end(
    settings: Settings, tmp_path: Path
) -> None:
    """Seen after tests with Apache: their pools went on beside a database without tables."""
    gone = changed(settings, database=f"sqlite:///{tmp_path / 'gone.sqlite'}")
    pool = BuildPool(make_engine(gone.service.database), gone)
    assert not PoolMain(gone)._may_end(pool, alone_s=ALONE_WITHOUT_DATABASE_S)
    assert PoolMain(gone)._may_end(pool, alone_s=ALONE_WITHOUT_DATABASE_S + 1)
