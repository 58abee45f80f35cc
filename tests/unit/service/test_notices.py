"""What notices say, when they are tried again, and which addresses webhooks may have."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import json
import socket
from typing import get_args

import pytest
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook

from config.settings import ServiceSettings, is_mail_address
from image_builder.errors import InvalidRequest
from service.api.notices import EventName
from service.notices import confirmation, destinations, mail, schedule
from service.notices.destinations import METADATA, NotAllowed, Policy, Unresolved, refusal
from service.notices.events import OF_BUILDS, Event, body_of
from service.notices.webhook import Message, new_secret, signed_headers

AT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
FACTS = {
    "id": "f1f4699b-9048-4ecc-aff3-1c689b855adc",
    "image_id": "demo_hello:latest",
    "filename": "demo_hello.sif",
    "status": "FAILED",
    "error_code": "PIP_FAILED",
    "ended_at": "2026-01-02T03:04:05.000Z",
}
PUBLIC = Policy(schemes=("https",), blocked=("203.0.114.0/24", *METADATA))


def service(**more: object) -> ServiceSettings:
    return ServiceSettings(secret_key=SecretStr("k" * 40), **more)  # type: ignore[arg-type]


MAILING = {
    "smtp_host": "mail.example.org",
    "mail_sender": "cic@example.org",
    "public_url": "https://cic.example.org/image_creation/",
}


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "203.0.114.7",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::1",
        "2001:0:a00:1::1",
        "2001:db8::1",
    ],
)
def test_addresses_of_no_public_network_are_refused(address: str) -> None:
    assert refusal(ipaddress.ip_address(address), PUBLIC)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111"])
def test_public_addresses_may_be_called(address: str) -> None:
    assert refusal(ipaddress.ip_address(address), PUBLIC) is None


def test_the_operator_allows_networks_and_no_others() -> None:
    inside = Policy(schemes=("https",), allowed=("10.1.0.0/16",), blocked=("10.0.0.0/8",))
    assert refusal(ipaddress.ip_address("10.1.2.3"), inside) is None
    assert refusal(ipaddress.ip_address("::ffff:10.1.2.3"), inside) is None
    assert refusal(ipaddress.ip_address("10.2.2.3"), inside)
    assert refusal(ipaddress.ip_address("127.0.0.1"), inside)


def test_an_address_of_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is none that Python knows as special: taken for public, it is this machine's."""
    everything = Policy(schemes=("https",))
    monkeypatch.setattr(ipaddress.IPv4Address, "is_global", property(lambda _: True))
    assert refusal(ipaddress.ip_address("127.0.0.1"), everything) == "is an address of this machine"


@pytest.mark.parametrize(
    "url",
    [
        "http://ci.example.org/",
        "ftp://ci.example.org/",
        "https://",
        "https:///x",
        "https://ada:secret@ci.example.org/",
        "https://ci.example.org/#part",
        "https://ci.example.org:0/",
        "https://ci.example.org:99999/",
        "https://ci.example.org/\r\nX: y",
        "https://ci.example.org\\@127.0.0.1/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[::1",
        "https://ci.example.org/" + "x" * 500,
        "https://bücher.example/",
        "javascript:alert(1)",
        "",
    ],
)
def test_texts_that_are_no_address_of_a_webhook_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        destinations.require_url(url, PUBLIC)
    (problem,) = refused.value.problems
    assert problem.field == "url" and problem.hint


def test_a_webhooks_address_has_a_port_and_a_query_if_it_likes() -> None:
    url = "https://ci.example.org:8443/hook?project=7"
    destinations.require_url(url, PUBLIC)
    assert destinations.target_of(url) == ("ci.example.org", 8443)
    assert destinations.target_of("https://ci.example.org/x") == ("ci.example.org", 443)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1", "0"])
def test_spellings_of_this_machine_are_found_out_when_looked_up(host: str) -> None:
    with pytest.raises(NotAllowed, match="leads to an address that") as refused:
        destinations.checked_addresses(host, 443, PUBLIC, timeout_s=20)
    assert "127.0" not in str(refused.value).replace(host, "")


def test_one_bad_address_among_good_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_: object, **__: object) -> list[object]:
        return [(0, 0, 0, "", (address, 443)) for address in ("1.1.1.1", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(NotAllowed):
        destinations.checked_addresses("ci.example.org", 443, PUBLIC, timeout_s=5)


def test_a_name_that_is_not_found_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    never = __import__("threading").Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait(20) and [])
    with pytest.raises(Unresolved, match="in time"):
        destinations.resolve("ci.example.org", 443, timeout_s=0.05)
    never.set()


def test_pauses_grow_to_hours_and_end_after_more_than_a_day() -> None:
    pauses = [schedule.pause_s(tries, 0.0) for tries in range(1, schedule.MAX_TRIES)]
    assert all(pauses)
    assert all(later > before for before, later in itertools.pairwise(filter(None, pauses)))
    assert 24 * 3600 < sum(filter(None, pauses)) < 48 * 3600
    assert schedule.pause_s(schedule.MAX_TRIES, 0.0) is None


def test_pauses_are_longer_by_chance_and_as_a_receiver_asks_within_bounds() -> None:
    shortest, longest = schedule.pause_s(1, 0.0), schedule.pause_s(1, 1.0)
    assert shortest is not None and longest is not None
    assert shortest < longest <= shortest * (1 + schedule.JITTER)
    assert schedule.pause_s(1, 0.0, asked_s=60) == 60
    assert schedule.pause_s(1, 0.0, asked_s=10**6) == schedule.MAX_ASKED_S


def test_a_body_is_json_with_the_address_of_the_page_and_the_same_each_time() -> None:
    body = body_of(Event.FAILED, AT, FACTS, "https://cic.example.org/x")
    assert body == body_of(Event.FAILED, AT, dict(FACTS), "https://cic.example.org/x")
    message = json.loads(body)
    assert message["type"] == "build.failed"
    assert message["timestamp"] == "2026-01-02T03:04:05.000Z"
    assert message["data"] == {**FACTS, "url": f"https://cic.example.org/x/builds/{FACTS['id']}"}
    assert json.loads(body_of(Event.FAILED, AT, FACTS, None))["data"]["url"] is None
    assert json.loads(body_of(Event.TEST, AT, {}, None))["data"] == {}


def test_the_library_of_standard_webhooks_verifies_what_is_signed() -> None:
    secret, now = new_secret(), datetime.datetime.now(datetime.timezone.utc)
    message = Message(id="msg_1", body=body_of(Event.TEST, AT, {}, None))
    headers = signed_headers(message, secret, now)
    assert Webhook(secret).verify(message.body, headers)["type"] == "test"
    assert secret.startswith("whsec_") and secret != new_secret()


def test_the_events_that_calls_name_are_those_there_are() -> None:
    assert get_args(EventName) == tuple(event.value for event in OF_BUILDS)


@pytest.mark.parametrize(
    "address", ["ada@example.org", "a.b+c@x-y.example.org", "o'brien@ex.am.ple"]
)
def test_mail_addresses_are_taken(address: str) -> None:
    assert is_mail_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "ada",
        "ada@localhost",
        "ada@example.org\nBcc: bob@example.org",
        "ada@example.org\n",
        "ada@example.org, bob@example.org",
        "Ada <ada@example.org>",
        '"a b"@example.org',
        ".ada@example.org",
        "a..b@example.org",
        "ada@-example.org",
        "ädä@example.org",
        "a" * 65 + "@example.org",
        "ada@" + "a." * 130 + "org",
        "",
    ],
)
def test_other_texts_are_no_mail_address(address: str) -> None:
    assert not is_mail_address(address)


def test_no_name_of_an_image_becomes_a_header() -> None:
    facts = {**FACTS, "filename": "x\r\nBcc: eve@example.org\r\n\r\nhello"}
    written = mail.of_build(Event.FAILED, facts, "ada@example.org", "msg_1", service(**MAILING))
    head, _, _ = written.as_bytes().partition(b"\r\n\r\n")
    assert not [line for line in head.split(b"\r\n") if line.lower().startswith(b"bcc")]
    assert written["To"] == "ada@example.org"
    assert written["Message-ID"] == "<msg_1@example.org>"
    assert written["Auto-Submitted"] == "auto-generated"


def test_a_mail_says_what_happened_and_where_to_look() -> None:
    text = mail.of_build(
        Event.FAILED, FACTS, "ada@example.org", "msg_1", service(**MAILING)
    ).get_content()
    assert "demo_hello.sif has failed" in text and "PIP_FAILED" in text
    assert f"https://cic.example.org/image_creation/builds/{FACTS['id']}" in text


def test_a_link_that_confirms_is_one_users_for_one_address() -> None:
    settings = service(**MAILING)
    token = confirmation.token_for(7, "ada@example.org", settings)
    assert confirmation.address_in(token, 7, settings) == "ada@example.org"
    assert confirmation.address_in(token, 8, settings) is None
    said, _, signature = token.rpartition(".")
    assert confirmation.address_in(f"{said}.{signature[::-1]}", 7, settings) is None
    assert confirmation.address_in("", 7, settings) is None
    renewed = settings.model_copy(
        update={"secret_key": SecretStr("n" * 40), "old_secret_keys": (settings.secret_key,)}
    )
    assert confirmation.address_in(token, 7, renewed) == "ada@example.org"
    assert (
        confirmation.address_in(
            token, 7, service(**MAILING).model_copy(update={"secret_key": SecretStr("n" * 40)})
        )
        is None
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mail_sender": None}, "mail_sender"),
        ({"mail_sender": "cic@example.org\nBcc: x"}, "mail_sender"),
        ({"public_url": None}, "public_url"),
        ({"public_url": "cic.example.org"}, "public_url"),
        ({"smtp_user": "cic"}, "smtp_password"),
        ({"smtp_user": "c", "smtp_password": "p", "smtp_security": "none"}, "smtp_security"),
    ],
)
def test_mail_settings_that_cannot_work_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        service(**(MAILING | changes))


def test_settings_of_webhooks_are_checked() -> None:
    assert service(**MAILING).public_url == "https://cic.example.org/image_creation"
    with pytest.raises(ValidationError):
        service(allowed_webhook_schemes=("gopher",))
    with pytest.raises(ValidationError):
        service(allowed_webhook_networks=("10.0.0.1/8",))
