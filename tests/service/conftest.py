"""An application of its own for each test: a real database, real git, the real pool in threads, and
a fake builder.

The database is SQLite; with CIC_TEST_DATABASE=postgresql, every test here gets one on a real
PostgreSQL server.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from config.settings import Settings
from image_builder.errors import CicError
from image_builder.host.cancellation import CancelToken
from image_builder.observer import Observer
from image_builder.pipeline import BuildResult, NotWanted
from image_builder.plan.inputs import Inputs
from image_builder.plan.resolve import resolve
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from image_builder.state import BuildState
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from image_builder.timeline.spans import Span
from service.db import accounts
from service.db.database import (
    copy_sqlite,
    database_url,
    db,
    init_database,
    make_engine,
    migrate,
)
from service.workers.pool import BuildPool
from tests.service.described import listening
from tests.support.postgresql import PostgreSQL, programs
from tests.support.site import MACHINE, Site, make_site

accounts.HASH_METHOD = "scrypt:1024:8:1"  # as the real one, with less patience

ROOT = "/image_creation"
PASSWORD = "correct horse battery"
REQUEST = {"machine": MACHINE, "workflow": "demo", "step_id": "hello", "push": False}


class FakeBuilder:
    """Stands in for `pipeline.build_image`: no docker, but real states, log lines, and a SIF in the
    real store.

    `hold` keeps builds going on until it is set; `error` is raised once they are let go.
    `labels` are the image's, `details` more of its record, and `spans` what is reported of times,
    counted from that moment. With `by_tree`, steps whose files differ have other identities also
    where no base image is reached.
    """

    def __init__(self) -> None:
        self.calls: list[BuildRequest] = []
        self.inputs: list[Inputs] = []
        self.hold = threading.Event()
        self.hold.set()
        self.error: Exception | None = None
        self.lines = ["building", "built"]
        self.labels: dict[str, str] = {}
        self.spans: list[Span] = []
        self.details: dict[str, Any] = {}
        self.by_tree = False

    def __call__(
        self,
        request: BuildRequest,
        *,
        settings: LibrarySettings,
        workspace: Path,
        observer: Observer,
        cancel: CancelToken,
        inputs: Inputs | None = None,
        requested_at: Callable[[], float | None] = lambda: 0.0,
    ) -> BuildResult:
        self.calls.append(request)
        observer.entered(BuildState.STARTED)
        pinned = inputs or resolve(request, settings)
        self.inputs.append(pinned)
        observer.entered(BuildState.BUILDING)
        for count, line in enumerate(self.lines, 1):
            observer.line(line)
            observer.progress(count, len(self.lines), f"package-{count}@1.0")
        for span in self.spans:
            observer.span(at_present(span))
        while not self.hold.wait(0.02):
            cancel.check()
        if self.error is not None:
            raise self.error
        if requested_at() is None:
            raise NotWanted
        tree = pinned.step.tree if self.by_tree else ""
        identity = pinned.identity or "sha256:" + tree.ljust(64, "0")
        record = ImageRecord(
            identity=identity,
            image_id=pinned.image_id,
            platform=request.machine.platform,
            filename=pinned.filename,
            details={"labels": self.labels, "image_bytes": 7000, **self.details},
        )
        store = ImageStore(settings.build.tmp_folder / "store")
        if pinned.filename is None:
            store.record(record)
        else:
            observer.entered(BuildState.CONVERTING)
            with store.temporary_path() as temporary:
                temporary.write_bytes(b"SIF of " + identity.encode() * 100)
                record = store.publish(temporary, record)
        return BuildResult(
            image_id=pinned.image_id,
            identity=identity,
            filename=pinned.filename,
            sif_path=store.path_of(record.sha256) if record.sha256 else None,
            sha256=record.sha256,
            size_bytes=record.size_bytes,
            pushed_digest="sha256:pushed" if pinned.push else None,
            reused=False,
            audit=None,
            warnings=pinned.warnings,
        )


def at_present(span: Span) -> Span:
    """Return a span whose times count from now on."""
    moment = time.time()
    ended_s = None if span.ended_s is None else moment + span.ended_s
    return dataclasses.replace(span, began_s=moment + span.began_s, ended_s=ended_s)


class Api:
    """The REST API as one user sees it."""

    def __init__(self, app: Flask, user: str = "ada", password: str = PASSWORD) -> None:
        self.app = app
        self.client: FlaskClient = app.test_client()
        self.headers = {
            "Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()
        }

    def __call__(self, method: str, path: str, **more: Any) -> TestResponse:
        headers = self.headers | dict(more.pop("headers", {}))
        return self.client.open(ROOT + path, method=method, headers=headers, **more)

    def submit(self, **changes: Any) -> str:
        """Submit the usual request with changes, and return the build's id."""
        answer = self("POST", "/build/", json=REQUEST | changes)
        assert answer.status_code == 200, answer.text
        return str(answer.get_json()["id"])

    def status(self, build_id: str) -> dict[str, Any]:
        answer = self("GET", f"/build/{build_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.get_json())

    def wait(self, build_id: str, *statuses: str, timeout_s: float = 30) -> dict[str, Any]:
        """Poll until the build has one of the statuses, or has ended."""
        wanted = statuses or ("FINISHED", "FAILED")
        end = time.monotonic() + timeout_s
        while (status := self.status(build_id))["status"] not in wanted:
            assert time.monotonic() < end, status
            time.sleep(0.02)
        return status


@pytest.fixture(autouse=True)
def _every_answer_is_described() -> Iterator[None]:
    """Whatever an application of this process answers while a test runs is held against the API's
    description.
    """
    with listening() as undescribed:
        yield
    assert undescribed == []


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site whose workflow registry holds `demo/hello` and `demo/other`; its folders are not used."""
    site = make_site(tmp_path_factory.mktemp("site"))
    site.add_step("demo", "hello", {"eflows4hpc.yaml": "apt:\n  - bc\n"})
    site.add_step("demo", "other", {"eflows4hpc.yaml": "apt:\n  - less\n"})
    return site


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed: scripts/install_test_parts does that")
    server = PostgreSQL()
    yield server
    server.stop()


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database. Tests that set `request.param` choose its kind."""
    kind = getattr(request, "param", None) or os.environ.get("CIC_TEST_DATABASE", "sqlite")
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'db.sqlite'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.database()
    yield url
    server.drop(url)


@pytest.fixture
def site(shared_site: Site, tmp_path: Path, database: str) -> Site:
    """The shared site with a database and a folder of this test's own."""
    return shared_site.with_environ(
        CIC_DATABASE=database, CIC_BUILD_TMP_FOLDER=str(tmp_path / "tmp")
    )


@pytest.fixture
def settings(site: Site) -> Settings:
    return site.settings


@pytest.fixture
def builder() -> FakeBuilder:
    return FakeBuilder()


@pytest.fixture
def app(settings: Settings, builder: FakeBuilder) -> Iterator[Flask]:
    """The application with its pool at work, and the users ada, bob and the administrator root."""
    with running_app(settings, builder) as made:
        yield made


@pytest.fixture
def ada(app: Flask) -> Api:
    return Api(app)


@pytest.fixture
def bob(app: Flask) -> Api:
    return Api(app, "bob")


@functools.cache
def migrated_database() -> bytes:
    """An SQLite file with the newest tables and nothing in them: migrations take as long as most
    tests.
    """
    with tempfile.TemporaryDirectory() as name:
        live, file = Path(name, "live.sqlite"), Path(name, "copy.sqlite")
        app = Flask("tables")
        init_database(app, f"sqlite:///{live}")
        migrate(app, Path(name, "lock"))
        copy_sqlite(live, file)
        with app.app_context():
            db.engine.dispose()
        return file.read_bytes()


class running_app:
    """An application whose pool works until the block ends."""

    def __init__(self, settings: Settings, builder: Any) -> None:
        from builder_service import create_app

        file = database_url(settings.service.database).database or ""
        if file.endswith(".sqlite") and not Path(file).exists():
            Path(file).write_bytes(migrated_database())
        self._engine = make_engine(settings.service.database)
        self.pool = BuildPool(self._engine, settings, build_image=builder)
        self._app = create_app(settings, executor=self.pool)
        for name in ("ada", "bob", "root"):
            accounts.add_user(self._engine, name, PASSWORD, is_admin=name == "root")

    def __enter__(self) -> Flask:
        self.pool.start()
        return self._app

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        self._engine.dispose()
        self._app.extensions["cic"].engine.dispose()


__all__ = ["Api", "CicError", "FakeBuilder"]
