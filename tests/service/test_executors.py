"""The contract of executors, held against each of them: the pool in this process, and Celery over a
real Redis.
"""

from __future__ import annotations

import contextlib
import datetime
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from builder_service import create_app
from config.settings import Settings
from image_builder.errors import Unavailable
from service.db import accounts, builds, runs, tables
from service.db.database import make_engine, now, reading, writing
from service.workers.celery_executor import WAITS, CeleryExecutor, Listener
from service.workers.pool import BuildPool
from service.workers.registry import all_workers
from tests.service.conftest import PASSWORD, Api, FakeBuilder
from tests.support.site import Site, free_port


class Redis:
    """A Redis server on a free port, with nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                "redis-server",
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(self._folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + 30
        while (
            subprocess.run(["redis-cli", "-p", str(self.port), "ping"], capture_output=True).stdout
            != b"PONG\n"
        ):
            assert time.monotonic() < end
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed: scripts/install_test_parts does that")
    server = Redis(tmp_path)
    yield server
    server.stop()


@contextlib.contextmanager
def working(settings: Settings, builder: FakeBuilder, executor: str) -> Iterator[Flask]:
    """An application whose builds are worked on behind the executor."""
    engine = make_engine(settings.service.database)
    pool = BuildPool(engine, settings, build_image=builder, is_one_of_many=executor == "celery")
    made = CeleryExecutor(engine, settings) if executor == "celery" else pool
    app = create_app(settings, executor=made)
    accounts.add_user(engine, "ada", PASSWORD)
    pool.start()
    listener = Listener(settings, pool) if executor == "celery" else None
    if listener is not None:
        made.start()
        listener.start()
    try:
        yield app
    finally:
        made.shutdown()
        pool.shutdown()
        if listener is not None:
            listener.stop()
            made.join(30)
        engine.dispose()
        app.extensions["cic"].engine.dispose()


@pytest.fixture(params=["pool", "celery"])
def executor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def site(
    shared_site: Site, tmp_path: Path, executor: str, request: pytest.FixtureRequest
) -> Iterator[Site]:
    found = shared_site.with_environ(
        CIC_DATABASE=f"sqlite:///{tmp_path / 'db.sqlite'}",
        CIC_BUILD_TMP_FOLDER=str(tmp_path / "tmp"),
    )
    if executor == "pool":
        yield found
        return
    server, broker = request.getfixturevalue("postgresql"), request.getfixturevalue("redis")
    url = server.database()
    yield found.with_environ(
        CIC_EXECUTOR="celery",
        CIC_DATABASE=url,
        CIC_WORKER_PLATFORMS="linux/amd64",
        CIC_BUILD_STORAGE=str(tmp_path / "images"),
        CIC_WORKER_EMULATED_PLATFORMS=",",
        CIC_BROKER_URL=f"redis://127.0.0.1:{broker.port}/0",
    )
    server.drop(url)


@pytest.fixture
def app(settings: Settings, builder: FakeBuilder, executor: str) -> Iterator[Flask]:
    with working(settings, builder, executor) as made:
        yield made


def test_what_is_submitted_is_worked_on(ada: Api, builder: FakeBuilder) -> None:
    assert ada.wait(ada.submit())["status"] == "FINISHED"
    assert len(builder.calls) == 1


def test_a_message_that_is_lost_costs_no_run(ada: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ada.app.extensions["cic"].executor), "submit", lambda *_: None)
    assert ada.wait(ada.submit())["status"] == "FINISHED"


def test_a_message_that_comes_again_repeats_nothing(ada: Api, builder: FakeBuilder) -> None:
    builder.hold.clear()
    build = ada.submit()
    ada.wait(build, "BUILDING")
    parts = ada.app.extensions["cic"]
    run_id = builds.build(parts.engine, build).run_id
    for _ in range(20):
        parts.executor.submit(run_id)
    builder.hold.set()
    assert ada.wait(build)["status"] == "FINISHED"
    for _ in range(20):
        parts.executor.submit(run_id)
    assert ada.wait(ada.submit(step_id="other"))["status"] == "FINISHED"
    assert len(builder.calls) == 2
    with reading(parts.engine) as connection:
        assert set(
            connection.scalars(tables.RUNS.select().with_only_columns(tables.RUNS.c.attempts))
        ) == {1}


def test_what_is_cancelled_ends(ada: Api, builder: FakeBuilder) -> None:
    builder.hold.clear()
    build = ada.submit()
    ada.wait(build, "BUILDING")
    ada("POST", f"/build/{build}/cancel")
    assert ada.wait(build)["error_code"] == "CANCELLED"
    builder.hold.set()
    assert ada.wait(ada.submit(step_id="other"))["status"] == "FINISHED"


def test_who_works_is_registered_until_the_end(
    settings: Settings, builder: FakeBuilder, executor: str
) -> None:
    with working(settings, builder, executor) as app:
        engine = app.extensions["cic"].engine
        end = time.monotonic() + 30
        while not (rows := all_workers(engine, lost_after_s=60)):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert [(row["state"], row["slots"]) for row in rows] == [("ready", 2)]
        engine = make_engine(settings.service.database)
    assert all_workers(engine, lost_after_s=60) == []
    engine.dispose()


@pytest.mark.parametrize("executor", ["celery"])
def test_after_the_database_was_away_workers_have_time_to_speak(
    settings: Settings, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a web process nor a worker takes a silent worker's run before it has seen the silence
    itself.
    """
    engine = make_engine(settings.service.database)
    app = create_app(settings, executor=(web := CeleryExecutor(engine, settings)))
    accounts.add_user(engine, "ada", PASSWORD)
    build = Api(app).submit()
    run_id = runs.claim(engine, "elsewhere:1", max_active_per_user=9)
    with writing(engine) as connection:
        connection.execute(
            tables.RUNS.update().values(heartbeat_at=now() - datetime.timedelta(hours=1))
        )
    other = BuildPool(engine, settings, build_image=builder, is_one_of_many=True)
    looks = ((web, web._look), (other, lambda: (other._heartbeat(), other._reconcile())))
    for who, look in looks:
        look()
        assert builds.build(engine, build).run_state.value == "STARTED"
        who._database.answers(does=False)
        look()
        assert builds.build(engine, build).run_state.value == "STARTED"
    for who, look in looks:
        monkeypatch.setattr(who._database, "for_at_least", lambda _: True)
        look()
        assert builds.build(engine, build).run_state.value == "PENDING"
        assert runs.claim(engine, "elsewhere:1", max_active_per_user=9) == run_id
        with writing(engine) as connection:
            connection.execute(
                tables.RUNS.update().values(heartbeat_at=now() - datetime.timedelta(hours=1))
            )
    engine.dispose()
    app.extensions["cic"].engine.dispose()


@pytest.mark.parametrize("executor", ["celery"])
def test_a_broker_that_is_away_is_told_and_costs_no_build(ada: Api, redis: Redis) -> None:
    redis.stop()
    executor = ada.app.extensions["cic"].executor
    with pytest.raises(Unavailable, match="broker"):
        executor.require_broker()
    assert ada.wait(ada.submit(), timeout_s=60)["status"] == "FINISHED"
    redis.start()
    executor.require_broker()
    executor.require_worker()
    assert ada.wait(ada.submit(step_id="other"), timeout_s=60)["status"] == "FINISHED"


class FakePool:
    """Stands in for a pool: keeps what it is told."""

    def __init__(self) -> None:
        self.name, self.told = "host:1", queue.Queue[str]()

    def submit(self, run_id: str) -> None:
        self.told.put(run_id)

    cancel = submit


def listener_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "celery"]


@pytest.mark.parametrize("executor", ["celery"])
def test_a_listener_hears_until_it_is_stopped_and_another_may_follow(settings: Settings) -> None:
    engine = make_engine(settings.service.database)
    sender = CeleryExecutor(engine, settings)
    for _ in range(2):
        pool = FakePool()
        listener = Listener(settings, pool)  # type: ignore[arg-type]
        listener.start()
        end = time.monotonic() + 30
        try:
            while pool.told.empty():  # what is sent before it listens, it never hears
                assert time.monotonic() < end
                sender._send(WAITS, "run")
                time.sleep(0.1)
        finally:
            listener.stop()
        assert listener_threads() == []
    engine.dispose()


@pytest.mark.parametrize("executor", ["celery"])
def test_a_listener_that_is_stopped_looks_for_its_broker_no_more(
    settings: Settings, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis.stop()
    listener = Listener(settings, FakePool())  # type: ignore[arg-type]
    listener.start()
    end = time.monotonic() + 30
    while "Cannot connect" not in caplog.text:
        assert time.monotonic() < end
        time.sleep(0.05)
    listener.stop()
    assert listener_threads() == []
