"""The database of the first service: its users log in here with the passwords they had."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.security import generate_password_hash

from config.settings import Settings
from service.db import accounts, earlier_users
from service.db.database import db
from tests.service.conftest import ROOT

TABLES = """
CREATE TABLE user (id INTEGER NOT NULL, username VARCHAR(32), password_hash VARCHAR(64),
                   email VARCHAR(100), PRIMARY KEY (id));
CREATE INDEX ix_user_username ON user (username);
CREATE TABLE machine (id INTEGER NOT NULL, platform VARCHAR(64), architecture VARCHAR(64),
                      mpi VARCHAR(64), gpu VARCHAR(64), PRIMARY KEY (id));
CREATE TABLE workflow (id INTEGER NOT NULL, name VARCHAR(64), step VARCHAR(64), version VARCHAR(64),
                       PRIMARY KEY (id));
CREATE TABLE build (id VARCHAR(64) NOT NULL, status VARCHAR(32), image VARCHAR(64),
                    filename VARCHAR(64), message VARCHAR(64), machine_id INTEGER,
                    workflow_id INTEGER, PRIMARY KEY (id),
                    FOREIGN KEY(machine_id) REFERENCES machine (id),
                    FOREIGN KEY(workflow_id) REFERENCES workflow (id));
CREATE TABLE image (id VARCHAR(64) NOT NULL, filename VARCHAR(64), machine_id INTEGER,
                    workflow_id INTEGER, PRIMARY KEY (id),
                    FOREIGN KEY(machine_id) REFERENCES machine (id),
                    FOREIGN KEY(workflow_id) REFERENCES workflow (id));
CREATE TABLE user_build (user_id INTEGER, build_id VARCHAR(64),
                         FOREIGN KEY(user_id) REFERENCES user (id),
                         FOREIGN KEY(build_id) REFERENCES build (id));
INSERT INTO build (id, status, image) VALUES ('b1', 'FINISHED', 'w_s');
"""
"""What the first service's SQLAlchemy made of its models."""
OLD = generate_password_hash("T3st22", "pbkdf2:sha256:1000")
NEW = generate_password_hash("later password", "scrypt:1024:8:1")
PUBLISHED = "pbkdf2:sha256:260000$C3Pi318CALHEy587$" + "3" * 64


def write_earlier(file: Path, *users: tuple[object, object]) -> Path:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.executescript(TABLES)
        connection.executemany("INSERT INTO user (username, password_hash) VALUES (?, ?)", users)
    return file


def status_of(app: Flask, name: str, password: str) -> int:
    login = "Basic " + b64encode(f"{name}:{password}".encode()).decode()
    return app.test_client().get(ROOT + "/build/", headers={"Authorization": login}).status_code


@pytest.fixture
def earlier(settings: Settings) -> Path:
    """The path at which the service looks for its database."""
    assert settings.service.database.startswith("sqlite:///")
    return Path(settings.service.database.removeprefix("sqlite:///"))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "service.db.earlier_users")
    return caplog


def start(settings: Settings) -> Flask:
    from builder_service import create_app

    return create_app(settings)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
class TestAnEarlierDatabase:
    """A service that is started on the `db.sqlite` of the first one."""

    def test_its_users_log_in_with_their_passwords(
        self, settings: Settings, earlier: Path, log: pytest.LogCaptureFixture
    ) -> None:
        write_earlier(earlier, ("ada", OLD), ("Bob", NEW))
        app = start(settings)
        assert status_of(app, "ada", "T3st22") == status_of(app, "Bob", "later password") == 200
        assert status_of(app, "ada", "later password") == 401
        assert not any(row.is_admin for row in accounts.users(app.extensions["cic"].engine))
        assert "Users taken over from the first service: 2. docs/migrate.md" in log.text

    def test_who_cannot_be_taken_over_is_named(
        self, settings: Settings, earlier: Path, log: pytest.LogCaptureFixture
    ) -> None:
        users = [
            ("ada", OLD),
            ("ADA", OLD),
            ("a b", OLD),
            (None, OLD),
            ("dan", None),
            ("eve", "sha1$salt$" + "0" * 40),
            ("pbk", "pbkdf2:md5:1$salt$" + "0" * 32),
            ("cic_token", OLD),
            ("test", PUBLISHED),
        ]
        write_earlier(earlier, *users)
        app = start(settings)
        assert [row.name for row in accounts.users(app.extensions["cic"].engine)] == ["ada"]
        assert "first service: 1." in log.text and "`users add NAME`" in log.text
        for name, _ in users[1:]:
            assert f"{str(name)!r}, whose " in log.text
        assert status_of(app, "eve", "x") == 401

    def test_they_are_taken_over_once(self, settings: Settings, earlier: Path) -> None:
        write_earlier(earlier, ("ada", OLD), ("bob", NEW))
        engine = start(settings).extensions["cic"].engine
        accounts.remove_user(engine, "bob")
        again = start(settings).extensions["cic"].engine
        assert [row.name for row in accounts.users(again)] == ["ada"]

    def test_processes_that_start_at_once_do_it_once(
        self, settings: Settings, earlier: Path, log: pytest.LogCaptureFixture
    ) -> None:
        app = start(settings)
        engine = app.extensions["cic"].engine
        write_earlier(earlier, *((f"user{number}", OLD) for number in range(50)))
        with ThreadPoolExecutor(8) as threads:
            for done in [
                threads.submit(earlier_users.take_over_at_first, engine) for _ in range(8)
            ]:
                done.result()
        assert len(accounts.users(engine)) == 50
        assert log.text.count("Users taken over") == 1

    def test_tables_made_by_hand_make_no_difference(
        self, settings: Settings, earlier: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_earlier(earlier, ("ada", OLD))
        monkeypatch.setenv("CIC_DATABASE", settings.service.database)
        monkeypatch.setenv("CIC_SECRET_KEY", "a canary of a secret key")
        monkeypatch.setenv("CIC_BUILD_TMP_FOLDER", str(settings.library.build.tmp_folder))
        db.create_all()
        assert status_of(start(settings), "ada", "T3st22") == 200


def test_another_programs_table_is_left_alone(settings: Settings, app: Flask) -> None:
    engine = app.extensions["cic"].engine
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE TABLE "user" (id INTEGER, login VARCHAR(10))')
    names = [row.name for row in accounts.users(engine)]
    earlier_users.take_over_at_first(engine)
    assert [row.name for row in accounts.users(engine)] == names


def test_the_command_reads_another_file(app: Flask, tmp_path: Path) -> None:
    file = write_earlier(tmp_path / "old & spaced.sqlite", ("carol", OLD), ("ada", NEW))
    before = file.read_bytes()
    run = app.test_cli_runner().invoke(args=["users", "import", str(file)])
    assert run.exit_code == 0, run.output
    assert "first service: 1." in run.output and "'ada', whose name is taken" in run.output
    assert status_of(app, "carol", "T3st22") == 200 and status_of(app, "ada", "T3st22") == 401
    assert file.read_bytes() == before


def test_a_file_of_something_else_is_refused(app: Flask, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("no database at all, but long enough" * 100)
    run = app.test_cli_runner().invoke(args=["users", "import", str(file)])
    assert run.exit_code == 1
    assert "Name the db.sqlite of the first service." in run.output
