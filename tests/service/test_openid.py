"""The log-in through an OpenID provider, against a forger: only what is whole and meant for this
service logs in, and everything else gets one plain line.
"""

from __future__ import annotations

import datetime
import itertools
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import Engine
from werkzeug.test import TestResponse

from service.db import accounts, groups, subjects
from service.db.database import now, writing
from service.oidc import provider as provider_module
from tests.service.conftest import PASSWORD, ROOT, Api
from tests.service.openid_site import Started, forger, forging, no_waiting, started
from tests.service.test_web import Visitor, csrf_token
from tests.support.forging_provider import (
    CLIENT,
    DEVICE,
    SECRET,
    ForgingProvider,
    other_key,
    signed_with_public_key,
    unsigned,
)

__all__ = ["forger", "forging", "no_waiting", "started"]

REFUSED = "The log-in was not accepted. Begin it again."


@pytest.fixture
def openid(started: Started) -> Flask:
    return started()


@pytest.fixture
def engine(openid: Flask) -> Engine:
    return openid.extensions["cic"].engine


class Person(Visitor):
    """A browser that is sent to the provider, and comes back with what a test lets it bring."""

    def begin(self, path: str = "/login/openid") -> dict[str, str]:
        """Begin a log-in, and return what the provider is asked."""
        answer = self.client.get(ROOT + path)
        assert answer.status_code == 302, answer.text
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(answer.location).query))

    def back(self, **query: str) -> TestResponse:
        return self.client.get(f"{ROOT}/login/openid/back", query_string=query)

    def come_back(self, forger: ForgingProvider, **claims: Any) -> TestResponse:
        """Log in, out of any session, with an ID token of these claims."""
        self.client.delete_cookie("cic_session", path=ROOT)
        asked = self.begin()
        token = forger.signed(forger.claims(**{"nonce": asked["nonce"], **claims}))
        forger.token = {
            "access_token": "an-access-token",
            "token_type": "Bearer",
            "id_token": token,
        }
        return self.back(state=asked["state"], code="a-code")

    @property
    def name(self) -> str | None:
        """Who is logged in."""
        page = self.client.get(f"{ROOT}/account", headers={"Accept": "text/html"})
        return (
            page.text.partition("<h1>")[2].partition("</h1>")[0]
            if page.status_code == 200
            else None
        )

    def told(self) -> str:
        """What the log-in page says above its form."""
        page = self.client.get(f"{ROOT}/login").text
        return page.partition('role="status">')[2].partition("</div>")[0]


def test_a_browser_is_sent_with_challenge_state_and_nonce(
    openid: Flask, forger: ForgingProvider
) -> None:
    person = Person(openid)
    assert "Sign in with the institute" in person.get("/login").text
    asked, again = person.begin(), person.begin()
    assert asked["client_id"] == CLIENT and asked["response_type"] == "code"
    assert asked["code_challenge_method"] == "S256" and len(asked["code_challenge"]) == 43
    assert asked["redirect_uri"] == f"http://localhost{ROOT}/login/openid/back"
    assert asked["scope"] == "openid profile"
    assert not {asked[name] for name in ("state", "nonce", "code_challenge")} & set(again.values())


def test_who_comes_back_with_a_good_token_is_logged_in(
    openid: Flask, forger: ForgingProvider, engine: Engine
) -> None:
    person = Person(openid)
    asked = person.begin("/login/openid?next=" + urllib.parse.quote(f"{ROOT}/images"))
    token = forger.signed(forger.claims(nonce=asked["nonce"]))
    forger.token = {"access_token": "t", "token_type": "Bearer", "id_token": token}
    answer = person.back(state=asked["state"], code="a-code")
    assert (answer.status_code, answer.location) == (302, f"{ROOT}/images")
    assert person.name == "ada.lovelace"
    (form,) = [form for path, form in forger.asked if path == "/token"]
    assert form["code"] == "a-code" and len(form["code_verifier"]) >= 43
    assert form["Authorization"].startswith("Basic ") and SECRET not in str(form)
    row = accounts.by_name(engine, "ada.lovelace")
    assert [one.subject for one in subjects.of_user(engine, row.id)] == ["subject-of-ada"]
    assert Api(openid, "ada.lovelace", "")("GET", "/build/").status_code == 401
    assert person.post("/logout", token=csrf_token(person.get("/account"))).status_code == 302
    assert person.name is None


def now_s() -> int:
    return int(time.time())


FORGED: dict[str, Callable[[ForgingProvider, dict[str, Any]], str]] = {
    "no algorithm": lambda forger, claims: unsigned(claims),
    "the public key as a secret": signed_with_public_key,
    "another key of the same id": lambda forger, claims: forger.signed(
        claims, key=other_key(), alg="ES256"
    ),
    "a key that is nowhere": lambda forger, claims: forger.signed(
        claims, key=other_key("two"), alg="ES256"
    ),
    "a key of its own header": lambda forger, claims: forger.signed(
        claims,
        key=(own := other_key("two")),
        alg="ES256",
        jwk=own.as_dict(private=False),
        jku=f"{forger.issuer}/jwks",
    ),
    "a signature cut off": lambda forger, claims: forger.signed(claims).rpartition(".")[0] + ".",
    "claims changed": lambda forger, claims: ".".join(
        (
            forger.signed(claims).split(".")[0],
            forger.signed({**claims, "sub": "x"}).split(".")[1],
            forger.signed(claims).split(".")[2],
        )
    ),
    "no token": lambda forger, claims: "",
    "five parts": lambda forger, claims: "a.b.c.d.e",
    "a deep header": lambda forger, claims: "W1tb" * 5000 + ".e30.e30",
    "a huge token": lambda forger, claims: forger.signed({**claims, "x": "y" * 70_000}),
    "letters": lambda forger, claims: "ä.ö.ü",
}
CLAIMS: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://other.example.org"},
    "no issuer": {"iss": None},
    "another client": {"aud": "other"},
    "the device's client": {"aud": DEVICE},
    "clients without azp": {"aud": [CLIENT, "other"]},
    "azp of another": {"aud": [CLIENT, "other"], "azp": "other"},
    "azp of another alone": {"azp": "other"},
    "no audience": {"aud": None},
    "an odd audience": {"aud": {"cic": 1}},
    "no subject": {"sub": None},
    "an odd subject": {"sub": ["subject-of-ada"]},
    "an empty subject": {"sub": ""},
    "a long subject": {"sub": "x" * 300},
    "expired": {"exp": now_s() - 3600, "iat": now_s() - 7200},
    "just expired": {"exp": now_s() - 400, "iat": now_s() - 500},
    "no end": {"exp": None},
    "an odd end": {"exp": "tomorrow"},
    "an endless end": {"exp": True},
    "not yet": {"nbf": now_s() + 3600},
    "of the future": {"iat": now_s() + 3600, "exp": now_s() + 7200},
    "no time": {"iat": None},
    "another nonce": {"nonce": "another"},
    "no nonce": {"nonce": None},
    "an odd nonce": {"nonce": 1},
    "another access token": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("WARNING")
    return caplog


def test_what_is_forged_logs_nobody_in(
    openid: Flask, forger: ForgingProvider, log: Any, engine: Engine
) -> None:
    users = len(accounts.users(engine))
    for what, forge in FORGED.items():
        person = Person(openid)
        asked = person.begin()
        token = forge(forger, forger.claims(nonce=asked["nonce"]))
        forger.token = {"access_token": "t", "token_type": "Bearer", "id_token": token}
        assert person.back(state=asked["state"], code="a-code").location == f"{ROOT}/login", what
        assert person.told() == REFUSED, what
        assert person.name is None, what
        assert not token or token not in log.text, what
    for what, claims in CLAIMS.items():
        person = Person(openid)
        assert person.come_back(forger, **claims).location == f"{ROOT}/login", what
        assert person.told() == REFUSED and person.name is None, what
    assert len(accounts.users(engine)) == users
    lines = [record.getMessage() for record in log.records]
    assert len(lines) >= len(FORGED) + len(CLAIMS)
    assert all(
        line.startswith("a log-in through OpenID Connect from 127.0.0.1 failed: ") for line in lines
    )
    assert any("expired" in line for line in lines) and any("future" in line for line in lines)


def test_clocks_may_differ_a_little(openid: Flask, forger: ForgingProvider) -> None:
    for claims in (
        {"iat": now_s() + 40, "exp": now_s() + 300, "nbf": now_s() + 40},
        {"iat": now_s() - 300, "exp": now_s() - 40},
        {"aud": [CLIENT, "other"], "azp": CLIENT},
    ):
        person = Person(openid)
        person.come_back(forger, **claims)
        assert person.name == "ada.lovelace", claims


def test_an_answer_is_good_for_the_browser_that_began_and_once(
    openid: Flask, forger: ForgingProvider
) -> None:
    victim, thief = Person(openid), Person(openid)
    asked = victim.begin()
    token = forger.signed(forger.claims(nonce=asked["nonce"]))
    forger.token = {"access_token": "t", "token_type": "Bearer", "id_token": token}
    answer = {"state": asked["state"], "code": "a-code"}
    thief.begin()
    assert thief.back(**answer).location == f"{ROOT}/login" and thief.name is None
    cookie = victim.client.get_cookie("cic_session", path=ROOT)
    assert cookie is not None
    victim.back(**answer)
    assert victim.name == "ada.lovelace"
    copy = Person(openid)
    copy.client.set_cookie("cic_session", cookie.value, path=ROOT)
    assert copy.back(**answer).location == f"{ROOT}/login"
    assert copy.told() == REFUSED and copy.name is None


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"code": "a-code"},
        {"state": "nothing", "code": "a-code"},
        {"state": "", "code": ""},
        {"code": "x" * 5000},
        {"code": "a\nb"},
        {"error": "access_denied"},
        {"error": "<script>", "error_description": "<b>"},
        {"code": "a-code", "iss": "https://other.example.org"},
    ],
)
def test_an_answer_that_is_none_logs_nobody_in(
    openid: Flask, forger: ForgingProvider, query: dict[str, str]
) -> None:
    person = Person(openid)
    asked = person.begin()
    forger.token = {"id_token": forger.signed(forger.claims(nonce=asked["nonce"]))}
    person.back(**query if query == {"code": "a-code"} else {"state": asked["state"], **query})
    assert person.name is None and person.told() == REFUSED


def test_a_provider_that_names_itself_must_do_so(openid: Flask, forger: ForgingProvider) -> None:
    forger.metadata = {"authorization_response_iss_parameter_supported": True}
    person = Person(openid)
    asked = person.begin()
    token = forger.signed(forger.claims(nonce=asked["nonce"]))
    forger.token = {"access_token": "t", "token_type": "Bearer", "id_token": token}
    person.back(state=asked["state"], code="a-code")
    assert person.name is None
    asked = person.begin()
    forger.token["id_token"] = forger.signed(forger.claims(nonce=asked["nonce"]))
    person.back(state=asked["state"], code="a-code", iss=forger.issuer)
    assert person.name == "ada.lovelace"


def endless() -> Iterator[bytes]:
    return (b"[" * 65536 for _ in itertools.repeat(None, 200))


def dripping() -> Iterator[bytes]:
    for _ in range(30):
        time.sleep(0.1)
        yield b" "


SILENT: dict[str, dict[str, Any]] = {
    "an error": {"/.well-known/openid-configuration": (500, None, {})},
    "no JSON": {"/.well-known/openid-configuration": (200, [b"<html>"], {})},
    "a deep one": {"/.well-known/openid-configuration": (200, [b"[" * 100_000], {})},
    "an endless one": {"/.well-known/openid-configuration": (200, endless(), {})},
    "a slow one": {"/.well-known/openid-configuration": (200, dripping(), {})},
    "a redirect": {"/.well-known/openid-configuration": (302, [], {"Location": "/jwks"})},
    "a list": {"/.well-known/openid-configuration": (200, [b"[]"], {})},
}
METADATA: dict[str, dict[str, Any]] = {
    "another issuer": {"issuer": "https://other.example.org"},
    "a slash more": {"issuer": "SLASH"},
    "keys without TLS": {"jwks_uri": "http://keys.example.org/jwks"},
    "keys in a file": {"jwks_uri": "file:///etc/passwd"},
    "a token endpoint with a password": {"token_endpoint": "https://u:p@host.example.org/"},
    "no keys": {"jwks_uri": None},
}


@pytest.mark.parametrize("what", [*SILENT, *METADATA])
def test_a_provider_that_speaks_otherwise_logs_nobody_in(
    started: Started, forger: ForgingProvider, what: str
) -> None:
    forger.raw = SILENT.get(what, {})
    forger.metadata = dict(METADATA.get(what, {}))
    if forger.metadata.get("issuer") == "SLASH":
        forger.metadata["issuer"] = f"{forger.issuer}/"
    person = Person(started())
    answer = person.client.get(f"{ROOT}/login/openid")
    assert answer.location == f"{ROOT}/login"
    assert person.told() == "The provider of the log-in does not answer. Try again in a while."


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/token", (400, [b'{"error": "invalid_grant", "error_description": "<b>"}'], {})),
        ("/token", (500, [b""], {})),
        ("/token", (200, [b"{}"], {})),
        ("/token", (200, [b'"text"'], {})),
        ("/token", (200, [b"\xff"], {})),
        ("/token", (200, endless(), {})),
        ("/token", (307, [], {"Location": "/token"})),
        ("/jwks", (200, [b'{"keys": 1}'], {})),
        ("/jwks", (200, [b'{"keys": [{"kty": "oct", "k": "AAAA", "kid": "one"}, 1, {}]}'], {})),
        ("/jwks", (404, [b""], {})),
    ],
)
def test_a_broken_exchange_logs_nobody_in(
    openid: Flask, forger: ForgingProvider, path: str, answer: Any
) -> None:
    person = Person(openid)
    forger.raw = {path: answer}
    assert person.come_back(forger).location == f"{ROOT}/login"
    assert person.name is None and person.told()


def test_keys_are_read_again_when_one_is_new_and_not_for_every_forgery(
    openid: Flask, forger: ForgingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    Person(openid).come_back(forger)
    fresh = other_key("two")
    forger.keys = [fresh]
    person = Person(openid)
    asked = person.begin()
    token = forger.signed(forger.claims(nonce=asked["nonce"]), key=fresh, alg="ES256")
    forger.token = {"access_token": "t", "token_type": "Bearer", "id_token": token}
    person.back(state=asked["state"], code="a-code")
    assert person.name == "ada.lovelace"
    monkeypatch.setattr(provider_module, "AGAIN_AFTER_S", 3600.0)
    forger.asked.clear()
    for number in range(5):
        thief = Person(openid)
        asked = thief.begin()
        token = forger.signed(
            forger.claims(nonce=asked["nonce"]), key=other_key(f"forged-{number}"), alg="ES256"
        )
        forger.token = {"access_token": "t", "token_type": "Bearer", "id_token": token}
        thief.back(state=asked["state"], code="a-code")
        assert thief.name is None
    assert [path for path, _ in forger.asked if path == "/jwks"] == []
    old = Person(openid)
    old.come_back(forger)  # with the key that the provider has no more
    assert old.name is None


def test_a_name_that_is_taken_is_not_taken_over(
    openid: Flask, forger: ForgingProvider, engine: Engine, log: Any
) -> None:
    person = Person(openid)
    person.come_back(forger, preferred_username="Ada")
    assert person.name is None
    assert person.told() == (
        "Your log-in works, but Ada is another account&#39;s name here. "
        "If it is yours, ask the operator to link it."
    )
    assert "users link Ada SUBJECT" in log.text and "subject-of-ada" in log.text
    cli = openid.test_cli_runner()
    done = cli.invoke(args=["users", "link", "ada", "subject-of-ada"])
    assert done.exit_code == 0, done.output
    person.come_back(forger, preferred_username="Ada")
    assert person.name == "ada"
    assert Api(openid)("GET", "/build/").status_code == 200  # her password still works
    assert cli.invoke(args=["users", "link", "bob", "subject-of-ada"]).exit_code == 1
    assert cli.invoke(args=["users", "unlink", "ada"]).exit_code == 0
    assert person.name is None
    person.come_back(forger, preferred_username="Ada")
    assert person.name is None


def test_a_user_is_found_by_the_subject_whatever_the_name(
    openid: Flask, forger: ForgingProvider
) -> None:
    person, namesake = Person(openid), Person(openid)
    person.come_back(forger, preferred_username="grace")
    assert person.name == "grace"
    person.come_back(forger, preferred_username="grace.hopper")
    assert person.name == "grace"
    namesake.come_back(forger, sub="another", preferred_username="grace")
    assert namesake.name is None


@pytest.mark.parametrize("name", ["", "a b", "cic_token", "x" * 65, "../x", None, 7, ["ada"]])
def test_a_name_that_no_user_can_have_makes_none(
    openid: Flask, forger: ForgingProvider, engine: Engine, name: Any
) -> None:
    users = len(accounts.users(engine))
    person = Person(openid)
    person.come_back(forger, preferred_username=name)
    assert person.name is None and "cannot be a user&#39;s name here" in person.told()
    assert len(accounts.users(engine)) == users


def test_user_info_has_what_the_token_lacks_and_is_of_the_same_subject(
    openid: Flask, forger: ForgingProvider
) -> None:
    forger.user_info = {"sub": "subject-of-ada", "preferred_username": "ada.l", "groups": ["grid"]}
    person = Person(openid)
    person.come_back(forger, preferred_username=None)
    assert person.name == "ada.l" and "grid" in person.get("/account").text
    (form,) = [form for path, form in forger.asked if path == "/userinfo"]
    assert form == {"Authorization": "Bearer an-access-token"}
    forger.user_info["sub"] = "another"
    person.come_back(forger, preferred_username=None)
    thief = Person(openid)
    thief.come_back(forger, preferred_username=None)
    assert thief.name is None and thief.told() == REFUSED


def test_groups_are_those_of_the_last_log_in(
    openid: Flask, forger: ForgingProvider, engine: Engine
) -> None:
    person = Person(openid)
    given = ["grid", "climate", "grid", "a,b", "", 7, "x" * 300, " edge ", "\u202e"]
    person.come_back(forger, groups=given)
    user_id = accounts.by_name(engine, "ada.lovelace").id
    assert groups.of_user(engine, user_id) == ["climate", "grid"]
    person.come_back(forger, groups="grid")
    assert groups.of_user(engine, user_id) == ["grid"]
    person.come_back(forger)
    assert groups.of_user(engine, user_id) == []


def test_groups_inside_another_claim_and_administrators(
    started: Started, forger: ForgingProvider
) -> None:
    app = started(
        CIC_OIDC_GROUPS_CLAIM="realm_access.roles", CIC_OIDC_ADMINISTRATOR_GROUPS="ops,root-team"
    )
    engine = app.extensions["cic"].engine
    person = Person(app)
    person.come_back(forger, realm_access={"roles": ["grid", "ops"]})
    assert person.get("/admin").status_code == 200
    other = Person(app)
    other.come_back(forger, realm_access={"roles": ["grid"]})
    assert other.get("/admin").status_code == 404
    assert person.name is None  # a right that goes ends the sessions of before
    other.come_back(forger, realm_access={"roles": ["ops"]})
    assert other.get("/admin").status_code == 200
    with writing(engine) as connection:
        past = now() - datetime.timedelta(seconds=1)
        connection.execute(accounts.USERS.update().values(admin_until=past))
    assert other.get("/admin").status_code == 404  # and ends by itself
    assert accounts.by_name(engine, "ada.lovelace").is_admin is False


def test_without_local_accounts_passwords_are_good_for_nothing(
    started: Started, forger: ForgingProvider
) -> None:
    app = started(CIC_OIDC_LOCAL_ACCOUNTS="false")
    engine = app.extensions["cic"].engine
    page = Person(app).get("/login").text
    assert "Sign in with the institute" in page
    assert 'name="password"' not in page and "/signup" not in page
    app.config["WTF_CSRF_ENABLED"] = False  # no page has a token for a form that is not there
    visitor = Person(app)
    form = {"name": "ada", "password": PASSWORD}
    assert visitor.client.post(f"{ROOT}/login", data=form).status_code == 200
    assert visitor.name is None
    assert visitor.get("/signup").status_code == 403
    refused = Api(app)("GET", "/build/")
    assert refused.status_code == 401 and "token" in refused.get_json()["detail"]
    build = Api(app)("GET", f"/build/{'0' * 36}")
    assert build.status_code == 401
    token = accounts.add_token(engine, accounts.by_name(engine, "ada").id, "robot")
    assert Api(app, token)("GET", "/build/").status_code == 200
    person = Person(app)
    person.come_back(forger)
    assert 'id="password-title"' not in person.get("/account").text
    assert person.client.post(f"{ROOT}/account/password", data={}).status_code == 404


def test_a_blocked_user_stays_out_and_one_who_waits(
    started: Started, forger: ForgingProvider
) -> None:
    app = started(CIC_CONFIRM_USERS="true")
    engine = app.extensions["cic"].engine
    person = Person(app)
    person.come_back(forger)
    assert person.name is None and "waits until an administrator confirms" in person.told()
    accounts.change_user(engine, "ada.lovelace", is_confirmed=True)
    person.come_back(forger)
    assert person.name == "ada.lovelace"
    accounts.change_user(engine, "ada.lovelace", is_active=False)
    assert person.name is None
    person.come_back(forger)
    assert person.name is None and "is blocked" in person.told()


def test_without_a_provider_there_is_no_such_page(app: Flask) -> None:
    person = Person(app)
    assert "Sign in with" not in person.get("/login").text
    assert person.get("/login/openid").status_code == 404
    assert person.get("/login/openid/back?state=x&code=y").status_code == 404
    assert Api(app)("GET", "/auth/oidc").status_code == 404
    assert Api(app)("POST", "/auth/oidc", json={"id_token": "x"}).status_code == 404
