"""The pages' log-in with a real provider: good ones, rotated keys, a wrong clock, thieves."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

import pytest
from flask import Flask

from service.db import accounts, groups, subjects
from service.oidc import provider as provider_module
from tests.oidc.conftest import BACK, Person, Started
from tests.service.conftest import ROOT, Api, FakeBuilder
from tests.support.certificate import make_certificate
from tests.support.openid_provider import OTHER, SECRET, USERS, OpenIdProvider, PersonAtProvider
from tests.support.site import MACHINE

REFUSED = "The log-in was not accepted. Begin it again."


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and metadata may be read again at once."""
    monkeypatch.setattr(provider_module, "AGAIN_AFTER_S", 0.0)


@pytest.fixture
def app(started: Started) -> Flask:
    return started()


def test_a_user_logs_in_with_name_groups_and_rights(app: Flask) -> None:
    engine = app.extensions["cic"].engine
    ada, dan = Person(app).log_in_at_provider("ada"), Person(app).log_in_at_provider("dan")
    assert (ada.name, dan.name) == ("ada.lovelace", "dan")
    row = accounts.by_name(engine, "ada.lovelace")
    assert groups.of_user(engine, row.id) == ["climate", "ops"]
    assert [one.subject for one in subjects.of_user(engine, row.id)] == ["ada"]
    assert ada.get("/admin").status_code == 200 and dan.get("/admin").status_code == 404


@pytest.mark.parametrize("options", [{"claims_in_user_info": False}, {"claims_in_user_info": True}])
def test_claims_come_with_the_token_or_as_user_info(
    started: Started, provider: OpenIdProvider, options: dict[str, bool]
) -> None:
    provider.start(**options)
    assert Person(started()).log_in_at_provider("ada").name == "ada.lovelace"


def test_keys_may_be_rotated(app: Flask, provider: OpenIdProvider) -> None:
    assert Person(app).log_in_at_provider("dan").name == "dan"
    provider.new_key()
    provider.start()
    assert Person(app).log_in_at_provider("dan").name == "dan"


@pytest.mark.parametrize(
    ("clock_offset_s", "name"), [(-40, "dan"), (40, "dan"), (-7200, None), (7200, None)]
)
def test_a_clock_may_be_off_by_a_minute(
    app: Flask,
    provider: OpenIdProvider,
    clock_offset_s: int,
    name: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.start(clock_offset_s=clock_offset_s)
    person = Person(app).log_in_at_provider("dan")
    assert person.name == name
    if name is None:
        assert person.told() == REFUSED and "clocks differ" in caplog.text


def test_a_code_and_a_state_are_good_once_and_in_one_browser(app: Flask) -> None:
    person, thief = Person(app), Person(app)
    answer = person.answer_of_provider("dan")
    thief.bring(answer)
    assert thief.name is None and thief.told() == REFUSED
    before = person.client.get_cookie("cic_session", path=ROOT)
    assert before is not None
    person.bring(answer)
    assert person.name == "dan"
    again = Person(app)
    again.client.set_cookie("cic_session", before.value, path=ROOT)
    again.bring(answer)
    assert again.name is None and again.told() == REFUSED


def test_the_provider_takes_no_code_twice_nor_without_the_verifier(app: Flask) -> None:
    """A thief who gets at the code has neither the secret of the browser nor a second chance."""
    person, thief = Person(app), Person(app)
    stolen = dict(
        urllib.parse.parse_qsl(urllib.parse.urlsplit(person.answer_of_provider("dan")).query)
    )
    begun = thief.client.get(f"{ROOT}/login/openid")
    own_state = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(begun.location).query))["state"]
    thief.bring(f"{BACK}?{urllib.parse.urlencode({**stolen, 'state': own_state})}")
    assert thief.name is None and thief.told() == REFUSED


def test_a_code_for_another_client_logs_nobody_in(app: Flask) -> None:
    """Another service of the institute takes what its users bring, and tries it here."""
    person = Person(app)
    begun = person.client.get(f"{ROOT}/login/openid").location
    other = begun.replace("client_id=cic&", f"client_id={OTHER}&")
    assert other != begun
    person.bring(PersonAtProvider().log_in(other, "dan", BACK))
    assert person.name is None and person.told() == REFUSED


def test_whoever_says_no_is_not_logged_in(app: Flask) -> None:
    person = Person(app)
    begun = dict(
        urllib.parse.parse_qsl(
            urllib.parse.urlsplit(person.client.get(f"{ROOT}/login/openid").location).query
        )
    )
    person.bring(f"{BACK}?error=access_denied&state={begun['state']}")
    assert person.name is None and person.told() == REFUSED


def test_a_provider_over_tls_is_verified(
    started: Started, provider: OpenIdProvider, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path)
    provider.start(certificate=str(certificate), key=str(key))
    trusting = started(CIC_BUILD_CA_BUNDLE=str(certificate))
    person = Person(trusting, verify=str(certificate)).log_in_at_provider("dan")
    assert person.name == "dan"
    doubting = Person(started_beside(trusting, provider))
    assert doubting.client.get(f"{ROOT}/login/openid").location == f"{ROOT}/login"
    assert doubting.told() == "The provider of the log-in does not answer. Try again in a while."


def started_beside(app: Flask, provider: OpenIdProvider) -> Flask:
    """The same service with the machine's own certificates."""
    from builder_service import create_app

    parts = app.extensions["cic"]
    library = parts.settings.library
    build = library.build.model_copy(update={"ca_bundle": None})
    library = library.model_copy(update={"build": build})
    return create_app(parts.settings.model_copy(update={"library": library}), parts.executor)


def test_who_loses_a_group_at_the_provider_loses_sight(
    app: Flask, provider: OpenIdProvider, builder: FakeBuilder
) -> None:
    engine = app.extensions["cic"].engine
    Person(app).log_in_at_provider("ada")
    dan = Person(app).log_in_at_provider("dan")
    tokens = {
        name: accounts.add_token(engine, accounts.by_name(engine, name).id, "test")
        for name in ("ada.lovelace", "dan", "bob")
    }
    ada, bob = Api(app, tokens["ada.lovelace"]), Api(app, tokens["bob"])
    answer = ada("POST", "/build/", json={"machine": MACHINE, "packages": ["zlib"], "push": False})
    filename = ada.wait(answer.get_json()["id"])["filename"]
    share = {"users": [], "groups": ["climate"]}
    assert ada("POST", f"/image/{filename}/share", json=share).status_code == 204
    assert dan.get(f"/images/{filename}").status_code == 200
    assert Api(app, tokens["dan"])("GET", f"/images/download/{filename}").status_code == 200
    assert bob("GET", f"/image/{filename}").status_code == 404
    provider.say_of({**USERS, "dan": {**USERS["dan"], "groups": []}})
    Person(app).log_in_at_provider("dan")
    assert dan.get(f"/images/{filename}").status_code == 404
    assert Api(app, tokens["dan"])("GET", f"/images/download/{filename}").status_code == 404


def test_nothing_of_the_secret_is_anywhere(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    person = Person(app).log_in_at_provider("dan")
    settings = app.extensions["cic"].settings
    shown = [repr(settings), str(settings.oidc), caplog.text, person.get("/login").text]
    assert not any(SECRET in text for text in shown)
    assert re.search("client_secret=SecretStr", repr(settings.oidc))
