"""Requests for a repository of the user's own, with a credential that the account keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import Engine

from service.db import accounts, builds, git_credentials
from service.sealing import seal, unseal
from tests.service.conftest import Api, FakeBuilder, running_app
from tests.service.test_web import Visitor
from tests.support.git_repository import GitHttpServer, GitRepository
from tests.support.site import MACHINE, Site

SECRET = "canary-of-a-host"


class Host:
    """A git host over TLS that asks for a log-in."""

    def __init__(self, server: GitHttpServer, repository: GitRepository, certificate: Path) -> None:
        self.server, self.repository, self.certificate = server, repository, certificate
        self.url = f"https://127.0.0.1:{server.server_port}/me/flows"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    repository = GitRepository(tmp_path / "hosted" / "me" / "flows")
    repository.write("solver/eflows4hpc.yaml", "apt:\n  - bc\n")
    repository.write("broken/eflows4hpc.yaml", "atp: [bc]\n")
    repository.commit()
    server = GitHttpServer(tmp_path / "hosted", "ada-there", SECRET)
    certificate = server.use_tls(tmp_path)
    with server.running():
        yield Host(server, repository, certificate)


@pytest.fixture
def app(site: Site, host: Host, builder: FakeBuilder) -> Iterator[Flask]:
    allowing = site.with_environ(
        CIC_REPOSITORIES_ALLOWED_GIT_HOSTS="127.0.0.1",
        CIC_BUILD_CA_BUNDLE=str(host.certificate),
    )
    with running_app(allowing.settings, builder) as made:
        yield made


@pytest.fixture
def engine(app: Flask) -> Engine:
    return app.extensions["cic"].engine


def asked(host: Host, **fields: Any) -> dict[str, Any]:
    return {"machine": MACHINE, "push": False, "repository": host.url, "path": "solver", **fields}


def keep_credential(app: Flask, secret: str = SECRET, login: str = "ada-there") -> Visitor:
    visitor = Visitor(app, "ada")
    form = {"host": "127.0.0.1", "login": login, "secret": secret}
    assert visitor.post("/account/credentials", form, form="/account").status_code == 302
    return visitor


def test_a_repository_is_built_with_the_users_credential(
    app: Flask, ada: Api, bob: Api, host: Host, engine: Engine, site: Site, builder: FakeBuilder
) -> None:
    refused = ada("POST", "/build/", json=asked(host))
    assert refused.status_code == 400
    assert "asks for a log-in" in refused.get_json()["errors"][0]["problem"]
    keep_credential(app)
    site.add_step("flows", "solver", {"eflows4hpc.yaml": "apt:\n  - bc\n"})
    builder.hold.clear()
    answer = ada("POST", "/build/", json=asked(host, name="flows/solver"))
    assert answer.status_code == 200, answer.text
    registry = ada.submit(workflow="flows", step_id="solver")
    rows = [builds.build(engine, one) for one in (answer.get_json()["id"], registry)]
    assert len({row.run_id for row in rows if row is not None}) == 1
    builder.hold.set()
    status = ada.wait(answer.get_json()["id"])
    assert status["filename"].startswith("ada---flows_solver_")
    assert status["request"]["repository"] == host.url
    assert ada("POST", "/build/plan", json=asked(host)).status_code == 200
    theirs = bob("POST", "/build/", json=asked(host))
    assert "asks for a log-in" in theirs.get_json()["errors"][0]["problem"]


def test_the_newest_commit_is_built_each_time(
    app: Flask, ada: Api, host: Host, engine: Engine
) -> None:
    visitor = keep_credential(app)
    build_id = ada("POST", "/build/", json=asked(host)).get_json()["id"]
    first = ada.wait(build_id)
    host.repository.write("solver/eflows4hpc.yaml", "apt:\n  - less\n")
    host.repository.commit()
    answer = visitor.post(f"/builds/{build_id}/retry", {})
    again = answer.location.rpartition("/")[2]
    ada.wait(again)
    assert first["request"] == ada.status(again)["request"]
    rows = [builds.build(engine, one) for one in (build_id, again)]
    assert len({row.run_id for row in rows if row is not None}) == 2
    assert "127.0.0.1" in visitor.get(f"/builds/{again}").text


def test_what_cannot_be_built_is_said_at_once(app: Flask, ada: Api, host: Host) -> None:
    keep_credential(app)
    broken = ada("POST", "/build/", json=asked(host, path="broken"))
    assert (broken.status_code, broken.get_json()["code"]) == (400, "BAD_DESCRIPTION")
    missing = ada("POST", "/build/", json=asked(host, path="nothing"))
    assert missing.status_code == 404
    assert [error["field"] for error in missing.get_json()["errors"]] == ["path"]
    unknown = ada("POST", "/build/", json=asked(host, version="nothing"))
    assert [error["field"] for error in unknown.get_json()["errors"]] == ["version"]
    elsewhere = asked(host, repository="https://git.example.org/me/flows")
    refused = ada("POST", "/build/", json=elsewhere)
    assert [error["field"] for error in refused.get_json()["errors"]] == ["repository"]
    beside = ada("POST", "/build/", json=asked(host, packages=["fftw"]))
    assert {"repository"} <= {error["field"] for error in beside.get_json()["errors"]}
    root = app.extensions["cic"].settings.library.build.uploads
    assert list(root.iterdir()) == []


def test_a_credential_is_shown_to_nobody(app: Flask, ada: Api, host: Host, engine: Engine) -> None:
    visitor = keep_credential(app)
    page = visitor.get("/account").text
    assert "ada-there" in page and SECRET not in page
    ada.wait(ada("POST", "/build/", json=asked(host)).get_json()["id"])
    with engine.connect() as connection:
        for table in ("git_credentials", "builds", "runs", "audit_events"):
            assert SECRET not in repr(connection.exec_driver_sql(f"SELECT * FROM {table}").all())
    keep_credential(app, "wrong-one")
    refused = ada("POST", "/build/", json=asked(host))
    assert "refuses your credential" in refused.text and "wrong-one" not in refused.text


def test_a_credential_is_sent_to_its_host_over_tls_alone(app: Flask, ada: Api, host: Host) -> None:
    keep_credential(app)
    plain = GitHttpServer(host.server.base, "ada-there", SECRET)
    with plain.running():
        url = f"http://127.0.0.1:{plain.server_port}/me/flows"
        answer = ada("POST", "/build/", json=asked(host, repository=url))
        assert answer.status_code == 400
        assert set(plain.seen) == {None}


def test_credentials_end_with_the_user_or_on_request(
    app: Flask, ada: Api, bob: Api, host: Host, engine: Engine
) -> None:
    visitor = keep_credential(app)
    user_id = accounts.by_name(engine, "ada").id
    (kept,) = git_credentials.of_user(engine, user_id)
    other = Visitor(app, "bob")
    path = f"/account/credentials/{kept.id}/remove"
    assert other.post(path, {}, form="/account").status_code == 404
    assert visitor.post(path, {}, form="/account").status_code == 302
    assert git_credentials.of_user(engine, user_id) == []
    keep_credential(app)
    accounts.remove_user(engine, "ada")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM git_credentials").all() == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"host": "git.example.org"}, "Is not allowed here"),
        ({"login": "a b"}, "Is no user"),
        ({"login": "a:b"}, "Is no user"),
        ({"secret": ""}, "Is no password or token"),
        ({"secret": "a\nb"}, "Is no password or token"),
        ({"secret": "x" * 501}, "Is no password or token"),
    ],
)
def test_credentials_that_are_none(app: Flask, fields: dict[str, str], text: str) -> None:
    visitor = Visitor(app, "ada")
    form = {"host": "127.0.0.1", "login": "ada", "secret": "word"} | fields
    page = visitor.post("/account/credentials", form, form="/account")
    assert page.status_code == 400 and text in page.text


def test_a_secret_key_that_changed_opens_what_the_old_one_sealed(app: Flask) -> None:
    from pydantic import SecretStr

    service = app.extensions["cic"].settings.service
    sealed = seal(SecretStr("word"), service)
    assert "word" not in sealed and sealed != seal(SecretStr("word"), service)
    changed = service.model_copy(
        update={"secret_key": SecretStr("another"), "old_secret_keys": (service.secret_key,)}
    )
    assert unseal(sealed, changed).get_secret_value() == "word"
    lost = service.model_copy(update={"secret_key": SecretStr("another"), "old_secret_keys": ()})
    with pytest.raises(Exception, match="cannot be read any more"):
        unseal(sealed, lost)


def test_where_no_host_is_allowed_none_is_asked(site: Site, builder: FakeBuilder) -> None:
    with running_app(site.settings, builder) as app:
        body = {"machine": MACHINE, "repository": "https://git.example.org/me/flows"}
        refused = Api(app)("POST", "/build/", json=body)
        assert [error["field"] for error in refused.get_json()["errors"]] == ["repository"]
        assert "Git hosts" not in Visitor(app, "ada").get("/account").text
