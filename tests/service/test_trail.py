"""The audit trail and the log lines: who did what, when, told to the operator."""

from __future__ import annotations

import json
import logging
import os
import pwd
import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from config.settings import Settings
from service.cleanup import Cleanup
from service.console import JsonLines
from service.db import audit_trail
from service.db import audit_trail as db_audit_trail
from service.db.database import now, writing
from tests.conftest import PROJECT
from tests.service.conftest import Api, FakeBuilder
from tests.service.test_web import Visitor
from tests.support.site import PASSWORD, Site


@pytest.fixture
def engine(app: Flask) -> sa.Engine:
    found: sa.Engine = app.extensions["cic"].engine
    return found


def done(engine: sa.Engine, **chosen: Any) -> list[tuple[str | None, str, str | None]]:
    return [(row.user, row.action, row.subject) for row in db_audit_trail.events(engine, **chosen)]


def test_who_asked_cancelled_deleted_and_downloaded(
    app: Flask, ada: Api, bob: Api, engine: sa.Engine, builder: FakeBuilder
) -> None:
    builder.hold.clear()
    hers, his = ada.submit(), bob.submit()
    ada("POST", f"/build/{hers}/cancel")
    builder.hold.set()
    filename = bob.wait(his)["filename"]
    bob("GET", f"/images/download/{filename}").close()
    ada("DELETE", f"/build/{hers}")
    page = Visitor(app, "bob")
    page.get(f"/images/{filename}/download").close()
    page.post(f"/builds/{his}/delete")
    sha256 = app.extensions["cic"].images.by_name(filename).sha256

    assert done(engine, user="ADA") == [
        ("ada", "delete", hers),
        ("ada", "cancel", hers),
        ("ada", "build", hers),
    ]
    assert done(engine, user="bob") == [
        ("bob", "delete", his),
        ("bob", "download", f"{filename} {sha256}"),
        ("bob", "login", None),
        ("bob", "download", f"{filename} {sha256}"),
        ("bob", "build", his),
    ]
    assert len(done(engine, action="download", subject=sha256[:10])) == 2
    assert done(engine, subject="%") == []
    assert done(engine, since=now()) == []
    assert len(done(engine, limit=3)) == 3
    row = db_audit_trail.events(engine, user="ada", limit=1)[0]
    assert (now() - row.at).total_seconds() < 300
    assert row.address == "127.0.0.1"


def test_what_is_refused_is_not_told_as_done(
    ada: Api, bob: Api, engine: sa.Engine, builder: FakeBuilder
) -> None:
    build_id = ada.submit()
    ada.wait(build_id)
    bob("POST", f"/build/{build_id}/cancel")
    bob("DELETE", f"/build/{build_id}")
    bob("GET", "/images/download/none.sif")
    bob("POST", "/build/", json={})
    assert done(engine, user="bob") == []


def test_the_trail_ends_where_the_operator_wants(
    app: Flask, engine: sa.Engine, settings: Settings
) -> None:
    audit_trail.record_audit_event(engine, user="ada", action="login")
    audit_trail.record_audit_event(engine, user="bob", action="login")
    with writing(engine) as connection:
        connection.execute(
            db_audit_trail.AUDIT.update()
            .where(db_audit_trail.AUDIT.c.user == "ada")
            .values(at=now().replace(year=2000))
        )

    def cleaned(keep_s: float | None) -> list[str]:
        service = settings.service.model_copy(update={"keep_audit_s": keep_s})
        cleanup = Cleanup(
            engine, settings.model_copy(update={"service": service}), app.extensions["cic"].images
        )
        return [item.name for item in cleanup.run() if item.kind == "audit entries"]

    assert cleaned(None) == []
    assert len(done(engine)) == 2
    assert cleaned(3600.0) == ["1"]
    assert done(engine) == [("bob", "login", None)]
    assert cleaned(3600.0) == []


def test_the_command(site: Site, app: Flask, engine: sa.Engine) -> None:
    def audit(*options: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-m", "flask", "--app", "builder_service", "audit", *options],
            cwd=PROJECT,
            env=dict(site.environ),
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()

    audit_trail.record_audit_event(
        engine, user="ada", action="build", subject="one", address="192.0.2.7"
    )
    audit_trail.record_audit_event(engine, user="bob", action="cancel", subject="two")
    assert [line.split("\t")[1:] for line in audit("--days", "1")] == [
        ["bob", "cancel", "two", "-"],
        ["ada", "build", "one", "192.0.2.7"],
    ]
    (line,) = audit("--user", "ada", "--json")
    assert {**json.loads(line), "at": ""} == {
        "at": "",
        "user": "ada",
        "action": "build",
        "subject": "one",
        "address": "192.0.2.7",
    }


def test_lines_as_objects(
    app: Flask,
    ada: Api,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    builder: FakeBuilder,
) -> None:
    caplog.set_level("INFO")
    made: list[dict[str, Any]] = []
    handler = logging.Handler()
    monkeypatch.setattr(
        handler, "emit", lambda record: made.append(json.loads(JsonLines().format(record)))
    )
    logging.getLogger("service").addHandler(handler)
    try:
        builder.error = ZeroDivisionError("a\nb")
        build_id = ada.submit()
        ada.wait(build_id)
        monkeypatch.setattr("service.db.builds.builds_of", lambda *_, **__: 1 / 0)
        assert ada("GET", "/build/").status_code == 500
    finally:
        logging.getLogger("service").removeHandler(handler)

    asked = next(line for line in made if line.get("action") == "build")
    assert (asked["user"], asked["subject"], asked["address"], asked["level"]) == (
        "ada",
        build_id,
        "127.0.0.1",
        "INFO",
    )
    joined = next(line for line in made if line.get("build") == build_id)
    assert joined["user"] == "ada"
    inside = next(line for line in made if line["logger"] == "service.workers.run")
    assert inside["run"] == joined["run"] and "ZeroDivisionError" in inside["trace"]
    failed = next(line for line in made if line["logger"] == "service.problems")
    assert (failed["user"], failed["method"], failed["path"]) == ("ada", "GET", "/build/")
    assert all(line["time"].endswith("+00:00") for line in made)


def test_what_operators_do_by_commands(app: Flask, engine: sa.Engine) -> None:
    run = app.test_cli_runner().invoke
    for command, text in [
        (("users", "add", "eve"), f"{PASSWORD}\n"),
        (("users", "promote", "eve"), None),
        (("tokens", "add", "eve", "nightly"), None),
        (("tokens", "revoke", "eve", "1"), None),
        (("users", "block", "eve"), None),
        (("users", "remove", "eve"), None),
    ]:
        assert run(args=command, input=text).exit_code == 0, command
    assert run(args=("users", "remove", "nobody")).exit_code != 0
    assert run(args=("cleanup", "--dry-run")).exit_code == 0
    told = [
        (row.action, row.subject)
        for row in reversed(db_audit_trail.events(engine))
        if row.address == "command line"
    ]
    assert told == [
        ("add user", "eve"),
        ("promote", "eve"),
        ("token", "nightly of eve"),
        ("revoke token", "1 of eve"),
        ("block", "eve"),
        ("remove user", "eve"),
    ]
    assert {row.user for row in db_audit_trail.events(engine) if row.address == "command line"} == {
        pwd.getpwuid(os.getuid()).pw_name
    }
