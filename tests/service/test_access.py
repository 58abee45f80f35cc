"""Who may do what: every route without a login, with a wrong one, and as somebody else."""

from __future__ import annotations

import datetime
from base64 import b64encode

import pytest
from flask import Flask
from sqlalchemy.engine import Engine

from service import accounts
from service.api import PUBLIC
from service.database import now
from tests.service.conftest import PASSWORD, ROOT, Api, FakeBuilder


@pytest.fixture
def engine(app: Flask) -> Engine:
    return app.extensions["cic"].engine


def api_calls(app: Flask) -> list[tuple[str, str, str]]:
    """Endpoint, method and rule of every call of the API."""
    return [(rule.endpoint, method, rule.rule) for rule in app.url_map.iter_rules()
            if rule.endpoint.startswith("api.") for method in sorted((rule.methods or set()) - {"OPTIONS"})]


def path_of(rule: str, build_id: str) -> str:
    return rule.replace("<build_id>", build_id).replace("<filename>", "a.sif")


def test_no_call_works_without_a_login_but_the_public_ones(app: Flask) -> None:
    for endpoint, method, rule in api_calls(app):
        answer = app.test_client().open(ROOT + path_of(rule, "0" * 36), method=method)
        if endpoint in PUBLIC:
            assert answer.status_code in (200, 503), rule
        else:
            assert answer.status_code == 401, rule
            schemes = [value.split()[0] for value in answer.headers.getlist("WWW-Authenticate")]
            assert schemes == ["Basic", "Bearer"], rule
            assert method == "HEAD" or answer.get_json()["code"] == "UNAUTHORIZED"


def test_somebody_elses_build_is_not_found(app: Flask, ada: Api, bob: Api, builder: FakeBuilder) -> None:
    build_id = ada.submit()
    ada.wait(build_id)
    tried = 0
    for user in (bob, Api(app, "root")):
        for _, method, rule in api_calls(app):
            if "<build_id>" in rule:
                assert user(method, path_of(rule, build_id)).status_code == 404, (method, rule)
                tried += 1
    assert tried >= 10
    assert ada.status(build_id)["status"] == "FINISHED"


@pytest.mark.parametrize(("name", "password"), [
    ("ada", "wrong"), ("ada", ""), ("nobody", PASSWORD), ("", PASSWORD), ("cic_unknown", ""), ("ada\0", PASSWORD),
    ("x" * 5000, "y" * 5000), ("ädä", "ß")])
def test_wrong_credentials_get_the_same_answer(app: Flask, ada: Api, name: str, password: str) -> None:
    answer = Api(app, name, password)("GET", "/build/")
    assert answer.status_code == 401
    assert answer.get_json() == Api(app, "ada", "also wrong")("GET", "/build/").get_json()


@pytest.mark.parametrize("header", [
    "Basic", "Basic !!!", "Bearer", "Bearer x y", "Digest x", "Basic " + "A" * 7000, "\x7f"])
def test_a_header_that_is_no_login_gets_401(app: Flask, header: str) -> None:
    assert app.test_client().get(f"{ROOT}/build/", headers={"Authorization": header}).status_code == 401


def test_a_token_stands_for_its_user(app: Flask, ada: Api, engine: Engine) -> None:
    build_id = ada.submit()
    token = accounts.add_token(engine, accounts.by_name(engine, "ada").id, "laptop")

    assert Api(app, token, "whatever").status(build_id)["id"] == build_id
    bearer = app.test_client().get(f"{ROOT}/build/{build_id}", headers={"Authorization": f"Bearer {token}"})
    assert bearer.status_code == 200
    with engine.connect() as connection:
        assert token not in repr(connection.exec_driver_sql("SELECT * FROM tokens").all())


def test_a_revoked_or_expired_token_is_none(app: Flask, engine: Engine) -> None:
    user_id = accounts.by_name(engine, "ada").id
    token = accounts.add_token(engine, user_id, "one")
    old = accounts.add_token(engine, user_id, "old", expires_at=now() - datetime.timedelta(seconds=1))
    assert Api(app, token)("GET", "/build/").status_code == 200
    assert Api(app, old)("GET", "/build/").status_code == 401

    accounts.revoke_token(engine, user_id, accounts.tokens_of(engine, user_id)[0].id)

    assert Api(app, token)("GET", "/build/").status_code == 401


def test_a_token_for_reading_cannot_build(app: Flask, engine: Engine) -> None:
    token = accounts.add_token(engine, accounts.by_name(engine, "ada").id, "reader", scopes=["read"])
    assert Api(app, token)("GET", "/build/").status_code == 200
    assert Api(app, token)("POST", "/build/", json={}).status_code == 403


def test_another_password_takes_effect_at_once(app: Flask, ada: Api, engine: Engine) -> None:
    assert ada("GET", "/build/").status_code == 200  # remembered from here on
    accounts.set_password(engine, "ada", "another password")
    assert ada("GET", "/build/").status_code == 401
    assert Api(app, "ada", "another password")("GET", "/build/").status_code == 200


@pytest.mark.parametrize("values", [{"is_active": False}, {"is_confirmed": False}])
def test_who_is_locked_out_is_out_at_once(ada: Api, engine: Engine, values: dict[str, bool]) -> None:
    assert ada("GET", "/build/").status_code == 200
    accounts.change_user(engine, "ada", **values)
    assert ada("GET", "/build/").status_code == 401


def test_who_fails_again_and_again_has_to_wait(app: Flask, ada: Api) -> None:
    assert ada("GET", "/build/").status_code == 200
    answers = [Api(app, "ada", "wrong password")("GET", "/build/") for _ in range(25)]
    assert [answer.status_code for answer in answers[:5]] == [401] * 5
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert ada("GET", "/build/").status_code == 200  # who is remembered does not suffer
    assert Api(app, "bob")("GET", "/build/").status_code == 200


def test_a_removed_user_leaves_nothing_behind(ada: Api, bob: Api, engine: Engine, builder: FakeBuilder) -> None:
    builder.hold.clear()
    hers, his = ada.submit(), bob.submit()
    accounts.remove_user(engine, "ada")
    builder.hold.set()
    assert bob.wait(his)["status"] == "FINISHED"
    assert ada("GET", f"/build/{hers}").status_code == 401


@pytest.mark.parametrize("name", ["", "a b", "../x", "cic_x", "CIC_x", "x" * 65, "-rm", "Ada", "a:b", "a\n"])
def test_names_that_are_none(engine: Engine, name: str) -> None:
    with pytest.raises(accounts.InvalidRequest):
        accounts.add_user(engine, name, PASSWORD)


def test_a_name_in_another_case_is_the_same_user(app: Flask) -> None:
    assert Api(app, "ADA")("GET", "/build/").status_code == 200


def test_passwords_are_not_kept(app: Flask, engine: Engine) -> None:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM users").all()
    assert PASSWORD not in repr(rows)
    assert b64encode(PASSWORD.encode()).decode() not in repr(rows)
