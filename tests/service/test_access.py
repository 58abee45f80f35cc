"""Who may do what: every route without a login, with a wrong one, and as somebody else."""

from __future__ import annotations

import dataclasses
import datetime
import re
from base64 import b64encode
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import Engine

from service.db import accounts
from service.db.database import now
from tests.service.conftest import PASSWORD, ROOT, Api, FakeBuilder
from tests.service.test_web import Visitor, csrf_token


@pytest.fixture
def engine(app: Flask) -> Engine:
    return app.extensions["cic"].engine


PUBLIC = {
    "api.live",
    "api.ready",
    "api.metrics",
    "api.openapi",
    "api.public_keys",
    "api.device_log_in",
    "api.log_in_with_device",
    "static",
    "bootstrap.static",
    "web.login",
    "web.openid",
    "web.openid_back",
    "web.logout",
    "web.signup",
    "web.captcha_picture",
    "web.captcha_sound",
    "web.docs",
}
"""Whoever adds to what strangers may reach writes it here, too."""

NOT_SET_UP = {"api.public_keys", "api.device_log_in", "api.log_in_with_device"}
"""What needs a key, or an OpenID provider, and says so (or, to an empty body, that it is none)."""

OWNED = {"build_id", "token_id", "credential_id", "webhook_id", "token"}
"""What a path may name that belongs to one user."""
OF_ADMINISTRATORS = {"user_id", "action"}
SHARED = {"filename", "name", "image_id", "identity", "captcha_id"}
"""Images; `test_visibility` asks each of these routes for those that not everybody may see."""


@dataclasses.dataclass(frozen=True)
class Route:
    """One method of one rule of the application."""

    endpoint: str
    method: str
    rule: str
    arguments: frozenset[str]

    def path(self, **named: Any) -> str:
        values = {
            "filename": "a.sif",
            "name": "spack.lock",
            "captcha_id": "x",
            "action": "block",
            "build_id": "0" * 36,
            "image_id": "a:1",
            "identity": "a" * 64,
            "token_id": 1,
            "credential_id": 1,
            "webhook_id": 1,
            "token": "x",
            "user_id": 1,
        } | named
        return ROOT + re.sub(r"<(?:\w+:)?(\w+)>", lambda match: str(values[match[1]]), self.rule)


def routes(app: Flask) -> list[Route]:
    """Whatever can be asked of the application."""
    return [
        Route(rule.endpoint, method, rule.rule, frozenset(rule.arguments))
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
    ]


def test_every_part_of_a_path_is_known_to_belong_to_somebody_or_nobody(app: Flask) -> None:
    named = {
        name for route in routes(app) if route.endpoint not in PUBLIC for name in route.arguments
    }
    assert named == (OWNED | OF_ADMINISTRATORS | SHARED) - {"captcha_id"}
    assert {route.endpoint for route in routes(app)} >= PUBLIC


def test_nothing_works_without_a_login_but_what_is_public(app: Flask, ada: Api) -> None:
    build_id = ada.submit()
    tried = 0
    for route in routes(app):
        if route.endpoint in PUBLIC:
            continue
        stranger = Visitor(app)
        data = (
            {"csrf_token": csrf_token(stranger.get("/login"))} if route.method == "POST" else None
        )
        answer = stranger.client.open(route.path(build_id=build_id), method=route.method, data=data)
        assert answer.status_code == 401, route
        assert route.method == "HEAD" or answer.get_json()["code"] == "UNAUTHORIZED", route
        if route.endpoint.startswith("api."):
            schemes = [value.split()[0] for value in answer.headers.getlist("WWW-Authenticate")]
            assert schemes == ["Basic", "Bearer"], route
        else:
            asked = stranger.client.open(
                route.path(build_id=build_id),
                method=route.method,
                data=data,
                headers={"Accept": "text/html"},
            )
            assert (asked.status_code, asked.location.split("?")[0]) == (302, f"{ROOT}/login"), (
                route
            )
        tried += 1
    assert tried > 50


def test_what_is_public_answers_strangers(app: Flask) -> None:
    for route in routes(app):
        if route.endpoint.startswith("api.") and route.endpoint in PUBLIC:
            status = app.test_client().open(route.path(), method=route.method).status_code
            is_set_up = route.endpoint not in NOT_SET_UP
            assert status in ((200, 503) if is_set_up else (404, 400)), route


def test_what_is_somebody_elses_is_not_there(app: Flask, ada: Api, engine: Engine) -> None:
    build_id = ada.submit()
    ada.wait(build_id)
    user_id = accounts.by_name(engine, "ada").id
    accounts.add_token(engine, user_id, "laptop")
    token_id = accounts.tokens_of(engine, user_id)[0].id
    tried = set()
    for name in ("bob", "root"):
        program, visitor = Api(app, name), Visitor(app, name)
        token = csrf_token(visitor.get("/account"))
        for route in routes(app):
            if not route.arguments & OWNED:
                continue
            path = route.path(build_id=build_id, token_id=token_id)
            answer = (
                program(route.method, path.removeprefix(ROOT))
                if route.endpoint.startswith("api.")
                else visitor.client.open(
                    path,
                    method=route.method,
                    data={"csrf_token": token} if route.method == "POST" else None,
                )
            )
            assert answer.status_code == 404, (name, route)
            tried.add(route.endpoint)
    assert {
        "api.status",
        "api.cancel",
        "api.delete",
        "api.log",
        "api.timeline",
        "web.build",
        "web.cancel",
        "web.delete",
        "web.build_log",
        "web.timeline",
        "web.revoke_token",
    } <= tried
    assert ada.status(build_id)["status"] == "FINISHED"
    assert len(accounts.tokens_of(engine, user_id)) == 1


def test_pages_of_administrators_are_not_there_for_others(app: Flask, engine: Engine) -> None:
    bob = Visitor(app, "bob")
    token = csrf_token(bob.get("/account"))
    tried = 0
    for route in routes(app):
        if route.endpoint == "web.admin" or route.arguments & OF_ADMINISTRATORS:
            path = route.path(user_id=accounts.by_name(engine, "ada").id)
            data = {"csrf_token": token} if route.method == "POST" else None
            assert bob.client.open(path, method=route.method, data=data).status_code == 404, route
            tried += 1
    assert tried >= 3
    assert accounts.by_name(engine, "ada").is_active


def test_nothing_has_the_method_options(app: Flask, ada: Api) -> None:
    """No page of another site may call, so nobody has to ask what it may; and nothing is said
    without a login.
    """
    for route in routes(app):
        if not route.endpoint.endswith("static"):
            assert app.test_client().options(route.path()).status_code == 405, route
            assert ada("OPTIONS", route.path().removeprefix(ROOT)).status_code == 405, route


def test_no_call_takes_a_cookie_for_a_login(app: Flask) -> None:
    """Else another site could make a browser cancel and delete."""
    visitor = Visitor(app, "ada")
    for route in routes(app):
        if route.endpoint.startswith("api.") and route.endpoint not in PUBLIC:
            assert visitor.client.open(route.path(), method=route.method).status_code == 401, route


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("ada", "wrong"),
        ("ada", ""),
        ("nobody", PASSWORD),
        ("", PASSWORD),
        ("cic_unknown", ""),
        ("ada\0", PASSWORD),
        ("x" * 5000, "y" * 5000),
        ("ädä", "ß"),
    ],
)
def test_wrong_credentials_get_the_same_answer(
    app: Flask, ada: Api, name: str, password: str
) -> None:
    answer = Api(app, name, password)("GET", "/build/")
    assert answer.status_code == 401
    assert answer.get_json() == Api(app, "ada", "also wrong")("GET", "/build/").get_json()


@pytest.mark.parametrize(
    "header",
    ["Basic", "Basic !!!", "Bearer", "Bearer x y", "Digest x", "Basic " + "A" * 7000, "\x7f"],
)
def test_a_header_that_is_no_login_gets_401(app: Flask, header: str) -> None:
    assert (
        app.test_client().get(f"{ROOT}/build/", headers={"Authorization": header}).status_code
        == 401
    )


def test_a_token_stands_for_its_user(app: Flask, ada: Api, engine: Engine) -> None:
    build_id = ada.submit()
    token = accounts.add_token(engine, accounts.by_name(engine, "ada").id, "laptop")

    assert Api(app, token, "whatever").status(build_id)["id"] == build_id
    bearer = app.test_client().get(
        f"{ROOT}/build/{build_id}", headers={"Authorization": f"Bearer {token}"}
    )
    assert bearer.status_code == 200
    with engine.connect() as connection:
        assert token not in repr(connection.exec_driver_sql("SELECT * FROM tokens").all())


def test_a_revoked_or_expired_token_is_none(app: Flask, engine: Engine) -> None:
    user_id = accounts.by_name(engine, "ada").id
    token = accounts.add_token(engine, user_id, "one")
    old = accounts.add_token(
        engine, user_id, "old", expires_at=now() - datetime.timedelta(seconds=1)
    )
    assert Api(app, token)("GET", "/build/").status_code == 200
    assert Api(app, old)("GET", "/build/").status_code == 401

    accounts.revoke_token(engine, user_id, accounts.tokens_of(engine, user_id)[0].id)

    assert Api(app, token)("GET", "/build/").status_code == 401


@pytest.mark.parametrize("scopes", [["read"], list(accounts.SCOPES)])
def test_a_token_revokes_itself_alone(app: Flask, engine: Engine, scopes: list[str]) -> None:
    user_id = accounts.by_name(engine, "ada").id
    token, other = (
        accounts.add_token(engine, user_id, name, scopes=scopes) for name in ("one", "other")
    )
    assert Api(app, token)("DELETE", "/auth/token").status_code == 204
    assert Api(app, token)("GET", "/build/").status_code == 401
    assert Api(app, other)("GET", "/build/").status_code == 200
    assert [row.name for row in accounts.tokens_of(engine, user_id)] == ["other"]


def test_a_password_is_no_token_to_revoke(ada: Api) -> None:
    refused = ada("DELETE", "/auth/token")
    assert (refused.status_code, refused.get_json()["code"]) == (400, "BAD_REQUEST")
    assert ada("GET", "/build/").status_code == 200


def test_only_administrators_pin_images(app: Flask, ada: Api) -> None:
    filename = ada.wait(ada.submit())["filename"]
    root = Api(app, "root")
    assert [ada(method, f"/image/{filename}/pin").status_code for method in ("POST", "DELETE")] == [
        403,
        403,
    ]
    assert ada("GET", f"/image/{filename}").get_json()["pinned"] is False
    assert root("POST", f"/image/{filename}/pin").status_code == 204
    assert ada("GET", f"/image/{filename}").get_json()["pinned"] is True
    assert root("DELETE", f"/image/{filename}/pin").status_code == 204
    assert ada("GET", f"/image/{filename}").get_json()["pinned"] is False
    assert root("POST", "/image/none.sif/pin").status_code == 404


def test_a_token_for_reading_cannot_build(app: Flask, engine: Engine) -> None:
    token = accounts.add_token(
        engine, accounts.by_name(engine, "ada").id, "reader", scopes=["read"]
    )
    assert Api(app, token)("GET", "/build/").status_code == 200
    assert Api(app, token)("POST", "/build/", json={}).status_code == 403


def test_another_password_takes_effect_at_once(app: Flask, ada: Api, engine: Engine) -> None:
    assert ada("GET", "/build/").status_code == 200  # remembered from here on
    accounts.set_password(engine, "ada", "another password")
    assert ada("GET", "/build/").status_code == 401
    assert Api(app, "ada", "another password")("GET", "/build/").status_code == 200


@pytest.mark.parametrize("values", [{"is_active": False}, {"is_confirmed": False}])
def test_who_is_locked_out_is_out_at_once(
    ada: Api, engine: Engine, values: dict[str, bool]
) -> None:
    assert ada("GET", "/build/").status_code == 200
    accounts.change_user(engine, "ada", **values)
    assert ada("GET", "/build/").status_code == 401


def test_who_fails_again_and_again_has_to_wait(app: Flask, ada: Api) -> None:
    assert ada("GET", "/build/").status_code == 200
    answers = [Api(app, "ada", "wrong password")("GET", "/build/") for _ in range(25)]
    assert [answer.status_code for answer in answers[:5]] == [401] * 5
    assert answers[-1].status_code == 429
    assert 200 < int(answers[-1].headers["Retry-After"]) <= 300  # when the count begins anew
    assert ada("GET", "/build/").status_code == 200  # who is remembered does not suffer
    assert Api(app, "bob")("GET", "/build/").status_code == 200


def test_a_removed_user_leaves_nothing_behind(
    ada: Api, bob: Api, engine: Engine, builder: FakeBuilder
) -> None:
    builder.hold.clear()
    hers, his = ada.submit(), bob.submit()
    accounts.remove_user(engine, "ada")
    builder.hold.set()
    assert bob.wait(his)["status"] == "FINISHED"
    assert ada("GET", f"/build/{hers}").status_code == 401


@pytest.mark.parametrize(
    "name", ["", "a b", "../x", "cic_x", "CIC_x", "x" * 65, "-rm", "Ada", "a:b", "a\n"]
)
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
