"""`POST /auth/oidc`: an ID token of the device flow becomes a token of the service, once."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import Engine
from werkzeug.test import TestResponse

from service.db import accounts, groups
from service.db.database import now
from tests.service.conftest import PASSWORD, ROOT, Api
from tests.service.openid_site import Started, forger, forging, no_waiting, started
from tests.support.forging_provider import (
    CLIENT,
    DEVICE,
    ForgingProvider,
    other_key,
    signed_with_public_key,
    unsigned,
)

__all__ = ["forger", "forging", "no_waiting", "started"]


@pytest.fixture
def openid(started: Started) -> Flask:
    return started()


@pytest.fixture
def engine(openid: Flask) -> Engine:
    return openid.extensions["cic"].engine


def exchange(app: Flask, id_token: str, **more: Any) -> TestResponse:
    headers = more.pop("headers", {})
    fields = {"id_token": id_token, **more}
    return app.test_client().post(f"{ROOT}/auth/oidc", json=fields, headers=headers)


def good(forger: ForgingProvider, **claims: Any) -> str:
    return forger.signed(forger.claims(**{"aud": DEVICE, **claims}))


def test_a_program_learns_where_to_go_and_nothing_secret(
    openid: Flask, forger: ForgingProvider
) -> None:
    answer = openid.test_client().get(f"{ROOT}/auth/oidc")
    assert answer.get_json() == {
        "issuer": forger.issuer,
        "client_id": DEVICE,
        "device_authorization_endpoint": f"{forger.issuer}/device",
        "token_endpoint": f"{forger.issuer}/token",
        "scopes": ["openid", "profile"],
        "name": "the institute",
    }


def test_a_provider_that_is_away_or_has_no_devices_is_said_so(
    openid: Flask, forger: ForgingProvider
) -> None:
    forger.raw = {"/.well-known/openid-configuration": (500, [b""], {})}
    silent = openid.test_client().get(f"{ROOT}/auth/oidc")
    assert (silent.status_code, silent.headers["Retry-After"]) == (503, "30")
    forger.raw, forger.metadata = {}, {"device_authorization_endpoint": None}
    assert openid.test_client().get(f"{ROOT}/auth/oidc").status_code == 404


def test_a_token_comes_of_it_that_is_the_users(
    openid: Flask, forger: ForgingProvider, engine: Engine
) -> None:
    answer = exchange(openid, good(forger, groups=["grid"]), name="cic on laptop")
    assert answer.status_code == 200, answer.text
    entered = answer.get_json()
    assert entered["user"] == "ada.lovelace"
    ends = datetime.datetime.fromisoformat(entered["expires_at"].replace("Z", "+00:00"))
    assert datetime.timedelta(days=29) < ends - now() < datetime.timedelta(days=31)
    assert Api(openid, entered["token"])("GET", "/group/").get_json() == {"groups": ["grid"]}
    user_id = accounts.by_name(engine, "ada.lovelace").id
    (kept,) = accounts.tokens_of(engine, user_id)
    assert (kept.name, kept.scopes) == ("cic on laptop", ["read", "build"])
    accounts.add_token(engine, user_id, "another")
    again = exchange(openid, good(forger, iat=int(time.time()) - 1), name="cic on laptop")
    assert Api(openid, entered["token"])("GET", "/build/").status_code == 401
    assert Api(openid, again.get_json()["token"])("GET", "/build/").status_code == 200
    assert groups.of_user(engine, user_id) == []
    assert [row.name for row in accounts.tokens_of(engine, user_id)] == ["another", "cic on laptop"]
    accounts.change_user(engine, "ada.lovelace", is_active=False)
    assert Api(openid, again.get_json()["token"])("GET", "/build/").status_code == 401
    assert exchange(openid, good(forger, iat=int(time.time()) - 2)).status_code == 403


def test_an_id_token_is_good_once_however_it_is_spelled(
    openid: Flask, forger: ForgingProvider
) -> None:
    token = good(forger)
    assert exchange(openid, token).status_code == 200
    assert exchange(openid, token).status_code == 403
    assert exchange(openid, token + "=").status_code == 403


def test_what_is_forged_old_or_for_another_gets_no_token(
    openid: Flask, forger: ForgingProvider, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    users, moment = len(accounts.users(engine)), int(time.time())
    claims = forger.claims(aud=DEVICE)
    tokens = {
        "none": unsigned(claims),
        "public key": signed_with_public_key(forger, claims),
        "another key": forger.signed(claims, key=other_key(), alg="ES256"),
        "of the pages": good(forger, aud=CLIENT),
        "of another client": good(forger, aud="other"),
        "of several": good(forger, aud=[DEVICE, "other"]),
        "of another issuer": good(forger, iss="https://other.example.org"),
        "expired": good(forger, iat=moment - 400, exp=moment - 100),
        "not fresh": good(forger, iat=moment - 1000, exp=moment + 3600),
        "of the future": good(forger, iat=moment + 600, exp=moment + 3600),
        "no token": "x",
        "letters": "\u00e4.\u00f6.\u00fc",
    }
    answers = {what: exchange(openid, token) for what, token in tokens.items()}
    assert {answer.status_code for answer in answers.values()} == {403}
    assert len({answer.text for answer in answers.values()}) == 1
    assert len(accounts.users(engine)) == users
    assert not any(token in caplog.text for token in tokens.values() if len(token) > 10)
    bound = good(forger, at_hash="AAAAAAAAAAAAAAAAAAAAAA")
    assert exchange(openid, bound, access_token="another").status_code == 403


def test_user_info_is_asked_with_the_access_token(openid: Flask, forger: ForgingProvider) -> None:
    forger.user_info = {"sub": "subject-of-ada", "preferred_username": "ada.l"}
    token = good(forger, preferred_username=None)
    answer = exchange(openid, token, access_token="an-access-token")
    assert answer.get_json()["user"] == "ada.l"
    assert ("/userinfo", {"Authorization": "Bearer an-access-token"}) in forger.asked
    forger.user_info = {"sub": "bob", "preferred_username": "bob"}
    token = good(forger, preferred_username=None, sub="subject-of-eve")
    assert exchange(openid, token, access_token="stolen").status_code == 403


def test_a_page_of_another_site_cannot_log_in(openid: Flask, forger: ForgingProvider) -> None:
    answer = exchange(openid, good(forger), headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403 and "another site" in answer.get_json()["detail"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id_token": ""},
        {"id_token": 1},
        {"id_token": "x" * 70_000},
        {"id_token": "a.b.c", "name": ""},
        {"id_token": "a.b.c", "name": "x" * 101},
        {"id_token": "a.b.c", "access_token": "x" * 70_000},
        {"id_token": "a.b.c", "refresh_token": "x"},
    ],
)
def test_wrong_fields_are_refused(openid: Flask, fields: dict[str, Any]) -> None:
    answer = openid.test_client().post(f"{ROOT}/auth/oidc", json=fields)
    assert answer.status_code == 400 and answer.get_json()["errors"]


def test_who_fails_again_and_again_has_to_wait(
    openid: Flask, forger: ForgingProvider, engine: Engine
) -> None:
    for _ in range(200):
        accounts.note_failed_login(engine, "openid from 127.0.0.1", 300)
    refused = exchange(openid, good(forger))
    assert refused.status_code == 429 and 200 < int(refused.headers["Retry-After"]) <= 300
    assert Api(openid, "ada", PASSWORD)("GET", "/build/").status_code == 200
