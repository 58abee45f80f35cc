"""`cic login` with the device flow, against a forger in the place of the provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cic_client import device
from cic_client.errors import UnexpectedAnswer, Unreachable
from cic_client.models import DeviceLogIn

from tests.support.forging_provider import DEVICE, ForgingProvider, forging_provider


@pytest.fixture(scope="module")
def forging() -> Iterator[ForgingProvider]:
    with forging_provider() as forger:
        yield forger


BEGUN = {
    "device_code": "the-device-code",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://login.example.org/device",
    "expires_in": 600,
    "interval": 2,
}


class Provider:
    """A forger that answers the questions of one log-in in their order."""

    def __init__(self, forger: ForgingProvider) -> None:
        self.forger = forger
        self.pauses: list[float] = []
        self.prompts: list[device.Prompt] = []
        forger.raw, forger.asked = {}, []

    def log_in(self, *answers: Any, begun: Any = BEGUN, **where: str) -> device.Tokens:
        """Log in where the provider answers so; a text is an error, and the last one stays."""
        left = list(answers)

        def answer_next() -> None:
            if left:
                self.forger.raw["/token"] = _answer(left.pop(0))

        def pause(seconds: float) -> None:
            self.pauses.append(seconds)
            answer_next()

        self.forger.raw["/device"] = _answer(begun)
        endpoints = {
            "device_authorization_endpoint": f"{self.forger.issuer}/device",
            "token_endpoint": f"{self.forger.issuer}/token",
            **where,
        }
        log_in_at = DeviceLogIn(
            issuer=self.forger.issuer, client_id=DEVICE, scopes=["openid", "groups"], **endpoints
        )
        return device.log_in(log_in_at, self.prompts.append, pause=pause)


def _answer(given: Any) -> tuple[int, Any, dict[str, str]]:
    if isinstance(given, tuple):
        return given
    if isinstance(given, str):
        return 400, [json.dumps({"error": given}).encode()], {}
    return 200, [json.dumps(given).encode()], {}


@pytest.fixture
def provider(forging: ForgingProvider) -> Provider:
    return Provider(forging)


TOKENS = {"id_token": "an.id.token", "access_token": "an-access-token", "token_type": "Bearer"}


def test_it_waits_until_the_user_has_logged_in(provider: Provider) -> None:
    pending = "authorization_pending"
    given = provider.log_in(pending, "slow_down", pending, TOKENS)
    assert (given.id_token, given.access_token) == ("an.id.token", "an-access-token")
    assert "an.id.token" not in repr(given)
    assert provider.pauses == [2.0, 2.0, 7.0, 7.0]
    (prompt,) = provider.prompts
    assert (prompt.code, prompt.whole_address) == ("WDJB-MJHT", None)
    (path, form), *polls = provider.forger.asked
    assert (path, form) == ("/device", {"client_id": DEVICE, "scope": "openid groups"})
    assert {form["device_code"] for _, form in polls} == {"the-device-code"}
    assert {form["grant_type"] for _, form in polls} == {device.GRANT}


@pytest.mark.parametrize(
    ("answers", "error", "text"),
    [
        (["access_denied"], device.NotLoggedIn, "refused"),
        (["expired_token"], device.NotLoggedIn, "in time"),
        (["authorization_pending"], device.NotLoggedIn, "in time"),
        (["invalid_client"], UnexpectedAnswer, "invalid_client"),
        ([{"access_token": "x"}], UnexpectedAnswer, "id_token"),
        ([{"id_token": 7}], UnexpectedAnswer, "id_token"),
        ([(500, [b""], {})], Unreachable, "500"),
        ([(302, [], {"Location": "/elsewhere"})], UnexpectedAnswer, "otherwise"),
        ([(200, [b"<html>"], {})], UnexpectedAnswer, "otherwise"),
        ([(200, [b"[" * 100_000], {})], UnexpectedAnswer, "otherwise"),
        ([(200, [b" " * 65536] * 10, {})], UnexpectedAnswer, "too large"),
    ],
)
def test_what_is_no_log_in_ends_in_words(
    provider: Provider, answers: list[Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        provider.log_in(*answers)


def test_a_provider_that_is_away_for_a_moment_is_asked_again(provider: Provider) -> None:
    away = (503, [b""], {})
    assert provider.log_in(away, away, TOKENS).id_token == "an.id.token"
    assert provider.pauses == [2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": None},
        {"user_code": 7},
        {"verification_uri": "http://login.example.org/device"},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri_complete": "file:///etc/passwd"},
        {"verification_uri": None},
        {"error": "unauthorized_client"},
    ],
)
def test_a_beginning_that_is_none_is_refused(provider: Provider, changes: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedAnswer):
        provider.log_in(TOKENS, begun={**BEGUN, **changes})
    assert provider.prompts == []


@pytest.mark.parametrize(
    "changes", [{"interval": 0}, {"interval": -5}, {"interval": "x"}, {"interval": True}, {}]
)
def test_the_pause_is_sane_whatever_the_provider_says(
    provider: Provider, changes: dict[str, Any]
) -> None:
    begun = {**BEGUN, **changes}
    if not changes:
        del begun["interval"]
    provider.log_in(TOKENS, begun=begun)
    assert provider.pauses == [device.INTERVAL_S]
    provider.log_in(TOKENS, begun={**BEGUN, "interval": 1e9, "expires_in": 1e12})
    assert provider.pauses[-1] == device.MAX_INTERVAL_S


@pytest.mark.parametrize("where", ["device_authorization_endpoint", "token_endpoint"])
def test_a_service_that_names_another_scheme_is_not_followed(
    provider: Provider, where: str
) -> None:
    with pytest.raises(UnexpectedAnswer, match="https://"):
        provider.log_in(TOKENS, **{where: "http://login.example.org/token"})
