"""Webhooks and mails: real receivers, a real mail server, and the sender of the pool."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from flask import Flask
from sqlalchemy.engine import Engine
from standardwebhooks import WebhookVerificationError

from config.settings import Settings
from image_builder.errors import CicError, ErrorCode, Unavailable
from service.cleanup import Cleanup
from service.db import accounts, builds, mail_addresses, notices, runs, webhooks
from service.db.database import now, writing
from service.notices import destinations, mail, schedule, webhook
from tests.service.conftest import Api, FakeBuilder, running_app
from tests.service.test_web import Visitor
from tests.support.receiver import Received, Receiver
from tests.support.site import Site, free_port

ALL = ["build.finished", "build.failed", "build.needs_attention"]
PUBLIC_URL = "https://cic.example.org/image_creation"


class MailServer:
    """aiosmtpd on a port of this machine. `refuse` is what it answers to the next recipients."""

    def __init__(self, port: int, **options: Any) -> None:
        self.mails: list[Any] = []
        self.refuse: list[str] = []
        self.controller = Controller(self, hostname="127.0.0.1", port=port, **options)

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if self.refuse:
            return self.refuse.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append((tuple(envelope.rcpt_tos), message_from_bytes(envelope.content)))
        return "250 OK"


@pytest.fixture(scope="module")
def smtp_port() -> int:
    return free_port()


@pytest.fixture
def settings(site: Site, smtp_port: int) -> Settings:
    return site.with_environ(
        CIC_ALLOWED_WEBHOOK_SCHEMES="https,http",
        CIC_ALLOWED_WEBHOOK_NETWORKS="127.0.0.0/8",
        CIC_PUBLIC_URL=PUBLIC_URL,
        CIC_SMTP_HOST="127.0.0.1",
        CIC_SMTP_PORT=str(smtp_port),
        CIC_SMTP_SECURITY="none",
        CIC_MAIL_SENDER="cic@example.org",
        CIC_MAX_RETRIES="1",
        CIC_RETRY_DELAY_S="0",
    ).settings


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "PAUSES_S", (0.01,) * len(schedule.PAUSES_S))


@pytest.fixture
def engine(app: Flask) -> Engine:
    return app.extensions["cic"].engine


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


@pytest.fixture
def mail_server(smtp_port: int) -> Iterator[MailServer]:
    server = MailServer(smtp_port)
    server.controller.start()
    yield server
    server.controller.stop()


def user_id(engine: Engine, name: str = "ada") -> int:
    return int(accounts.by_name(engine, name).id)


def eventually(found: Callable[[], Any], timeout_s: float = 60) -> Any:
    """What is found, once it is."""
    end = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return result


def add(api: Api, url: str, events: list[str] | None = None) -> tuple[int, str]:
    answer = api("POST", "/webhook/", json={"url": url} | ({"events": events} if events else {}))
    assert answer.status_code == 200, answer.text
    made = answer.get_json()
    return made["id"], made["secret"]


def sent(api: Api, event: str | None = None) -> list[dict[str, Any]]:
    """The user's notices that are done with."""
    listed = api("GET", "/notice/").get_json()["notices"]
    return [one for one in listed if one["outcome"] is not None and event in (None, one["event"])]


def url_of(receiver: Receiver, path: str = "/hook") -> str:
    return f"http://127.0.0.1:{receiver.port}{path}"


def test_a_webhook_is_told_of_a_finished_build(ada: Api, receiver: Receiver) -> None:
    webhook_id, secret = add(ada, url_of(receiver, "/hook?p=1"))
    build = ada.wait(ada.submit())
    (notice,) = eventually(lambda: sent(ada))
    (got,) = receiver.received
    assert got.path == "/hook?p=1"
    message = got.verified(secret)
    assert message["type"] == "build.finished"
    assert message["data"] == {
        "id": build["id"],
        "image_id": build["image_id"],
        "filename": build["filename"],
        "status": "FINISHED",
        "error_code": None,
        "sha256": build["sha256"],
        "created_at": build["created_at"],
        "started_at": build["started_at"],
        "ended_at": build["ended_at"],
        "url": f"{PUBLIC_URL}/builds/{build['id']}",
    }
    with pytest.raises(WebhookVerificationError):
        Received(got.path, got.headers, got.body.replace("FINISHED", "FAILED")).verified(secret)
    assert notice["id"] == got.headers["webhook-id"]
    assert (notice["build"], notice["webhook"]) == (build["id"], webhook_id)
    assert notice["tries"] == 1 and notice["outcome"] == "sent"
    assert notice["tried"][0]["status"] == 204


def test_it_is_tried_again_with_one_id_until_it_is_taken(ada: Api, receiver: Receiver) -> None:
    _, secret = add(ada, url_of(receiver))
    receiver.answers = [500, 302, 404, 200]
    receiver.headers = {"Location": url_of(receiver, "/elsewhere")}
    ada.wait(ada.submit())
    (notice,) = eventually(lambda: sent(ada))
    assert notice["tries"] == len(receiver.received) == 4
    assert {got.headers["webhook-id"] for got in receiver.received} == {notice["id"]}
    assert {got.path for got in receiver.received} == {"/hook"}  # a redirect is not followed
    assert len({got.body for got in receiver.received}) == 1
    assert [got.verified(secret)["type"] for got in receiver.received] == ["build.finished"] * 4
    assert [one["status"] for one in notice["tried"]] == [500, 302, 404, 200]


def test_what_nobody_takes_is_given_up(
    ada: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "MAX_TRIES", 3)
    add(ada, url_of(receiver))
    receiver.answers = [500] * 10
    ada.wait(ada.submit())
    (notice,) = eventually(lambda: sent(ada))
    assert (notice["outcome"], notice["tries"]) == ("given up", 3)


def test_a_receiver_that_is_gone_is_turned_off(ada: Api, receiver: Receiver) -> None:
    add(ada, url_of(receiver))
    receiver.answers = [410]
    ada.wait(ada.submit())
    assert eventually(lambda: sent(ada))[0]["outcome"] == "given up"
    (kept,) = ada("GET", "/webhook/").get_json()["webhooks"]
    assert kept["on"] is False and "410" in kept["why_off"]
    ada.wait(ada.submit(force=True))
    assert len(ada("GET", "/notice/").get_json()["notices"]) == 1
    changed = ada("POST", f"/webhook/{kept['id']}", json={"on": True}).get_json()
    assert changed["on"] is True and changed["why_off"] is None


def test_each_is_told_of_the_own_build_and_of_chosen_events(
    ada: Api, bob: Api, builder: FakeBuilder, receiver: Receiver
) -> None:
    """Ada and Bob share a run."""
    _, secret = add(ada, url_of(receiver, "/ada"))
    _, bobs = add(bob, url_of(receiver, "/bob"), ["build.failed"])
    _, others = add(bob, url_of(receiver, "/not"), ["build.finished"])
    builder.hold.clear()
    builder.error = CicError("no", code=ErrorCode.PIP_FAILED)
    mine, his = ada.submit(), bob.submit()
    builder.hold.set()
    assert eventually(lambda: sent(ada))[0]["build"] == mine
    assert eventually(lambda: sent(bob))[0]["build"] == his
    by_path = {got.path: got for got in receiver.received}
    assert set(by_path) == {"/ada", "/bob"}
    for path, key, build_id in (("/ada", secret, mine), ("/bob", bobs, his)):
        message = by_path[path].verified(key)
        assert message["type"] == "build.failed"
        assert message["data"]["id"] == build_id
        assert message["data"]["error_code"] == "PIP_FAILED"
    with pytest.raises(WebhookVerificationError):
        by_path["/bob"].verified(others)


def test_a_build_that_exists_and_one_that_is_cancelled_are_told_of(
    ada: Api, builder: FakeBuilder, receiver: Receiver
) -> None:
    add(ada, url_of(receiver))
    builder.hold.clear()
    build_id = ada.submit()
    ada.wait(build_id, "BUILDING")
    assert ada("POST", f"/build/{build_id}/cancel").status_code == 200
    (notice,) = eventually(lambda: sent(ada))
    assert (notice["event"], notice["build"]) == ("build.failed", build_id)
    assert '"error_code":"CANCELLED"' in receiver.received[0].body


def test_a_build_that_begins_anew_needs_attention_once(
    ada: Api, builder: FakeBuilder, receiver: Receiver
) -> None:
    _, secret = add(ada, url_of(receiver))
    builder.error = Unavailable("Docker is away.", code=ErrorCode.DOCKER_UNAVAILABLE)
    ada.wait(ada.submit())
    eventually(lambda: sent(ada, "build.failed"))
    eventually(lambda: sent(ada, "build.needs_attention"))
    messages = [got.verified(secret) for got in receiver.received]
    assert sorted(one["type"] for one in messages) == ["build.failed", "build.needs_attention"]
    by_type = {one["type"]: one["data"] for one in messages}
    assert by_type["build.needs_attention"]["error_code"] == "DOCKER_UNAVAILABLE"
    assert by_type["build.needs_attention"]["ended_at"] is None


def test_a_build_that_waits_for_long_needs_attention_once(
    ada: Api, builder: FakeBuilder, engine: Engine, receiver: Receiver
) -> None:
    add(ada, url_of(receiver))
    builder.hold.clear()
    for step in ("hello", "other"):  # the pool has two slots
        ada.wait(ada.submit(step_id=step), "BUILDING")
    waiting = ada.submit(force=True, step_id="hello")
    notices.tell_of_waiting(engine, 3600.0)
    assert ada("GET", "/notice/").get_json()["notices"] == []
    for _ in range(2):
        notices.tell_of_waiting(engine, 0.0)
    (notice,) = eventually(lambda: sent(ada))
    assert (notice["event"], notice["build"]) == ("build.needs_attention", waiting)
    assert '"status":"PENDING"' in receiver.received[0].body


def test_a_notice_is_written_with_the_end_of_its_build_or_not_at_all(
    ada: Api, builder: FakeBuilder, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(ada, "http://127.0.0.1:9/")
    builder.hold.clear()
    build_id = ada.submit()
    ada.wait(build_id, "BUILDING")
    row = builds.build(engine, build_id)
    with monkeypatch.context() as broken:
        broken.setattr(notices, "_write", failing)
        with pytest.raises(RuntimeError):
            runs.fail(engine, row.run_id, None, CicError("no"))
    assert ada.status(build_id)["status"] == "BUILDING"
    runs.fail(engine, row.run_id, None, CicError("no"))
    assert [one["build"] for one in ada("GET", "/notice/").get_json()["notices"]] == [build_id]


def failing(*_: object, **__: object) -> None:
    raise RuntimeError("the disk is full")


def test_a_claim_keeps_others_off_until_it_ends_and_late_words_do_not_count(
    app: Flask, ada: Api, engine: Engine
) -> None:
    app.extensions["cic"].executor._sender.stop()
    first, _ = add(ada, "http://127.0.0.1:9/a")
    second, _ = add(ada, "http://127.0.0.1:9/b")
    time.sleep(0.01)
    notices.add_test(engine, user_id(engine), first)
    notices.add_test(engine, user_id(engine), second)
    claimed = notices.claim(engine, lease_s=0.3)
    assert claimed is not None and claimed.webhook_id == first
    assert notices.claim(engine, lease_s=60) is None  # one at a time of each user
    again = eventually(lambda: notices.claim(engine, lease_s=60))
    assert (again.id, again.tries) == (claimed.id, 2)
    notices.end(engine, claimed, notices.SENT, "late")
    assert sent(ada) == []
    notices.end(engine, again, notices.SENT, "in time")
    (one,) = sent(ada)
    assert one["tried"][-1]["said"] == "in time"
    following = notices.claim(engine, lease_s=60)
    assert following is not None and following.webhook_id == second


def test_by_default_nothing_inside_is_called(
    site: Site, builder: FakeBuilder, receiver: Receiver
) -> None:
    with running_app(site.settings, builder) as app:
        _call_inside(Api(app), receiver)
    assert receiver.received == []


def _call_inside(ada: Api, receiver: Receiver) -> None:
    refused = ada("POST", "/webhook/", json={"url": "https://127.0.0.1/"})
    assert refused.status_code == 400
    assert refused.get_json()["errors"][0]["field"] == "url"
    assert ada("POST", "/webhook/", json={"url": url_of(receiver)}).status_code == 400
    add(ada, f"https://localhost:{receiver.port}/")
    ada.wait(ada.submit())

    def tried() -> Any:
        (one,) = ada("GET", "/notice/").get_json()["notices"]
        return one["tried"]

    said = eventually(tried)[-1]["said"]
    assert said == "localhost leads to an address that is not an address of the public network."


def certificate_for(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x"
    more = ["-addext", f"subjectAltName=DNS:{name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *more], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize(
    ("name", "is_taken"), [("hook.example.org", True), ("x.example.org", False)]
)
def test_the_connection_goes_to_the_checked_address_and_tls_is_for_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_taken: bool
) -> None:
    """The name is nowhere known: only what was checked can have led to the receiver."""
    certificate, key = certificate_for(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    receiver = Receiver(context=context)
    monkeypatch.setattr(destinations, "resolve", lambda *_: ["127.0.0.1"])
    caller = webhook.Caller(
        policy=destinations.Policy(schemes=("https",), allowed=("127.0.0.0/8",)),
        ca_bundle=certificate,
    )
    url = f"https://hook.example.org:{receiver.port}/x"
    message = webhook.Message(id="msg_1", body="{}")
    try:
        if is_taken:
            assert caller.post(url, message, {}).is_taken
            (got,) = receiver.received
            assert got.headers["host"] == f"hook.example.org:{receiver.port}"
        else:
            with pytest.raises(webhook.NoAnswer, match="certificate is not valid"):
                caller.post(url, message, {})
            assert receiver.received == []
    finally:
        receiver.close()


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\nX: ", b"nonsense\r\n\r\n", b""])
def test_a_receiver_that_never_ends_or_talks_nonsense_is_left(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(webhook, "DEADLINE_S", 1.0)
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(said)
            while not done.wait(0.1):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    caller = webhook.Caller(policy=destinations.Policy(schemes=("http",), allowed=("127.0.0.0/8",)))
    with pytest.raises(webhook.NoAnswer):
        caller.post(
            f"http://127.0.0.1:{listener.getsockname()[1]}/",
            webhook.Message(id="m", body="{}"),
            {},
        )
    done.set()
    thread.join()
    listener.close()


def test_an_endless_body_does_not_hold_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status has come, and counts."""
    monkeypatch.setattr(webhook, "LAST_WORDS_S", 0.2)
    listener = socket.create_server(("127.0.0.1", 0))

    def flood() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
            try:
                while True:
                    connection.sendall(b"x" * 65536)
            except OSError:
                return

    thread = threading.Thread(target=flood)
    thread.start()
    caller = webhook.Caller(policy=destinations.Policy(schemes=("http",), allowed=("127.0.0.0/8",)))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    assert caller.post(url, webhook.Message(id="m", body="{}"), {}).status == 200
    thread.join()
    listener.close()


def test_webhooks_are_kept_changed_tried_and_removed(
    ada: Api, bob: Api, engine: Engine, receiver: Receiver
) -> None:
    webhook_id, secret = add(ada, url_of(receiver), ["build.failed"])
    kept = ada("GET", "/webhook/").get_json()["webhooks"]
    assert [one["events"] for one in kept] == [["build.failed"]]
    assert secret not in ada("GET", "/webhook/").text
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM webhooks").all()
    assert rows and secret not in repr(rows)
    changed = ada("POST", f"/webhook/{webhook_id}", json={"events": ALL, "on": False})
    assert changed.get_json()["events"] == ALL and changed.get_json()["on"] is False
    ada.wait(ada.submit())
    tried = ada("POST", f"/webhook/{webhook_id}/test")
    (notice,) = eventually(lambda: sent(ada))
    assert notice["id"] == tried.get_json()["notice"]
    assert receiver.received[0].verified(secret)["type"] == "test"
    for method, path in (("POST", ""), ("DELETE", ""), ("POST", "/test")):
        assert bob(method, f"/webhook/{webhook_id}{path}", json={}).status_code == 404
        assert ada(method, f"/webhook/{10**8}{path}", json={}).status_code == 404
        assert ada(method, f"/webhook/x{path}", json={}).status_code == 404
    assert ada("DELETE", f"/webhook/{webhook_id}").status_code == 204
    assert ada("GET", "/webhook/").get_json() == {"webhooks": []}
    assert ada("GET", "/notice/").get_json() == {"notices": []}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "https://ci.example.org/", "events": []}, "events"),
        ({"url": "https://ci.example.org/", "events": ["build.exploded"]}, "events"),
        ({"url": "https://ci.example.org/", "secret": "x"}, "secret"),
        ({"url": "https://u:p@ci.example.org/"}, "url"),
    ],
)
def test_what_is_no_webhook_is_refused(ada: Api, body: dict[str, Any], field: str) -> None:
    answer = ada("POST", "/webhook/", json=body)
    assert answer.status_code == 400
    assert answer.get_json()["errors"][0]["field"].startswith(field)


def test_nobody_has_more_webhooks_than_some(ada: Api) -> None:
    for number in range(webhooks.MAX_WEBHOOKS):
        add(ada, f"https://ci.example.org/{number}")
    answer = ada("POST", "/webhook/", json={"url": "https://ci.example.org/"})
    assert answer.status_code == 400 and "many webhooks" in answer.text


def test_a_blocked_user_is_told_nothing_more(
    app: Flask, ada: Api, engine: Engine, receiver: Receiver
) -> None:
    app.extensions["cic"].executor._sender.stop()
    webhook_id, _ = add(ada, url_of(receiver))
    notices.add_test(engine, user_id(engine), webhook_id)
    accounts.change_user(engine, "ada", is_active=False)
    claimed = notices.claim(engine, 60)
    assert claimed is not None and not claimed.is_wanted
    app.extensions["cic"].executor._sender.send(claimed)
    assert receiver.received == []
    (row,) = notices.of_user(engine, user_id(engine))
    assert row.outcome == notices.DROPPED


def confirmed_link(mails: list[Any]) -> str:
    (_, message) = mails[-1]
    (token,) = re.findall(rf"{PUBLIC_URL}/account/mail/(\S+)", message.get_payload())
    return f"/account/mail/{token}"


def test_mail_is_sent_once_its_address_is_confirmed(
    app: Flask, ada: Api, bob: Api, builder: FakeBuilder, mail_server: MailServer
) -> None:
    wanted = {"address": "ada@example.org", "events": ALL, "on": True}
    kept = ada("POST", "/mail/", json=wanted).get_json()
    assert kept == wanted | {"confirmed": False}
    ada.wait(ada.submit())
    eventually(lambda: mail_server.mails)
    link = confirmed_link(mail_server.mails)
    assert Visitor(app, "bob").get(link).status_code == 404
    assert Visitor(app).get(link).status_code == 302  # to the log-in
    ada_there = Visitor(app, "ada")
    assert "ada@example.org" in ada_there.get(link).text
    assert ada("GET", "/mail/").get_json()["confirmed"] is False  # looking at it does nothing
    assert ada_there.post(link, form=link).status_code == 302
    assert ada("GET", "/mail/").get_json()["confirmed"] is True
    assert len(mail_server.mails) == 1

    build = ada.wait(ada.submit(force=True))
    eventually(lambda: len(mail_server.mails) == 2)
    to, message = mail_server.mails[1]
    assert to == ("ada@example.org",)
    assert message["From"] == "cic@example.org"
    assert message["Subject"] == f"{build['filename']} is finished"
    assert f"{PUBLIC_URL}/builds/{build['id']}" in message.get_payload()
    (notice,) = eventually(lambda: sent(ada, "build.finished"))
    assert message["Message-ID"] == f"<{notice['id']}@example.org>"
    # What the user cancels needs no mail.
    builder.hold.clear()
    cancelled = ada.submit(force=True)
    ada("POST", f"/build/{cancelled}/cancel")
    builder.hold.set()
    assert ada("POST", "/mail/", json=wanted | {"on": False}).get_json()["confirmed"] is True
    ada.wait(ada.submit(force=True))
    assert [one["event"] for one in ada("GET", "/notice/").get_json()["notices"]] == [
        "build.finished",
        "confirm",
    ]
    assert ada("DELETE", "/mail/").status_code == 204
    assert ada("GET", "/mail/").status_code == 404


def keep_confirmed(engine: Engine, user_id: int, address: str) -> None:
    """Let a user have confirmed an address, at which mail is still off."""
    mail_addresses.keep(engine, user_id, address=address, events=[], is_on=False)
    assert mail_addresses.confirm(engine, user_id, address)


def test_a_mail_server_that_is_away_or_refuses(
    ada: Api, engine: Engine, mail_server: MailServer
) -> None:
    keep_confirmed(engine, user_id(engine), "ada@example.org")
    ada("POST", "/mail/", json={"address": "ada@example.org", "events": ALL, "on": True})
    mail_server.controller.stop()
    ada.wait(ada.submit())

    def tried() -> Any:
        (one,) = ada("GET", "/notice/").get_json()["notices"]
        return one["tried"] and one

    assert "not reached" in eventually(tried)["tried"][0]["said"]
    mail_server.refuse = ["451 later", "550 nobody"]
    mail_server.controller = Controller(
        mail_server, hostname="127.0.0.1", port=mail_server.controller.port
    )
    mail_server.controller.start()
    (notice,) = eventually(lambda: sent(ada))
    assert notice["outcome"] == "given up"
    assert [one["said"] for one in notice["tried"]][-2:] == [
        "the mail server refuses the address (451)",
        "the mail server refuses the address (550)",
    ]


def test_mail_goes_over_tls_with_a_password_and_to_no_false_server(
    tmp_path: Path, settings: Settings
) -> None:
    certificate, key = certificate_for(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    logins: list[tuple[bytes, bytes]] = []

    def authenticate(_server: Any, _session: Any, _envelope: Any, _kind: str, data: Any) -> Any:
        logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"right")

    server = MailServer(
        free_port(),
        tls_context=context,
        require_starttls=True,
        authenticator=authenticate,
        auth_required=True,
    )
    server.controller.start()
    secure = settings.service.model_copy(
        update={
            "smtp_host": "localhost",
            "smtp_port": server.controller.port,
            "smtp_security": "starttls",
            "smtp_user": "cic",
            "smtp_password": type(settings.service.secret_key)("right"),
        }
    )
    text = mail.of_confirmation(1, "ada@example.org", "msg_1", secure)
    try:
        mail.send(text, secure, certificate)
        assert len(server.mails) == 1 and logins == [(b"cic", b"right")]
        with pytest.raises(mail.NotSent, match="SSLCertVerificationError"):
            mail.send(text, secure, None)
        wrong = secure.model_copy(update={"smtp_password": type(secure.secret_key)("wrong")})
        with pytest.raises(mail.NotSent):
            mail.send(text, wrong, certificate)
        assert len(server.mails) == 1
    finally:
        server.controller.stop()


def test_nobody_is_flooded_with_questions(ada: Api, bob: Api, mail_server: MailServer) -> None:
    answers = [
        ada("POST", "/mail/", json={"address": f"x{number}@example.org"})
        for number in range(notices.MAX_CONFIRMATIONS + 1)
    ]
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200] * notices.MAX_CONFIRMATIONS + [429]
    day_s = 24 * 3600
    assert day_s - 600 < int(answers[-1].headers["Retry-After"]) <= day_s
    assert ada("POST", "/mail/", json={"address": "a@b"}).status_code == 400
    assert bob("POST", "/mail/", json={"address": "x0@example.org"}).status_code == 200


def test_cleanup_forgets_old_notices(
    app: Flask, ada: Api, engine: Engine, receiver: Receiver, settings: Settings
) -> None:
    add(ada, url_of(receiver))
    ada.wait(ada.submit())
    eventually(lambda: sent(ada))
    service = settings.service.model_copy(update={"keep_notices_s": 0.0})
    at_once = settings.model_copy(update={"service": service})
    cleanup = Cleanup(engine, at_once, app.extensions["cic"].images)
    assert "notices" not in {item.kind for item in cleanup.run()}  # none before a day
    with writing(engine) as connection:
        long_ago = now().replace(year=2020)
        connection.execute(notices.NOTICES.update().values(ended_at=long_ago))
    assert "notices" in {item.kind for item in cleanup.run()}
    assert ada("GET", "/notice/").get_json() == {"notices": []}


def test_the_page_keeps_tries_and_shows(app: Flask, ada: Api, receiver: Receiver) -> None:
    there = Visitor(app, "ada")
    form = "/account/notices"
    assert "You have no webhooks" in there.get(form).text
    chosen = {"webhook-url": url_of(receiver), "webhook-finished": "y"}
    made = there.post("/account/webhooks", chosen, form=form)
    (secret,) = re.findall(r"whsec_[A-Za-z0-9+/=]+", made.text)
    assert secret not in there.get(form).text
    ada.wait(ada.submit())
    eventually(lambda: sent(ada))
    page = there.get(form).text
    assert "sent</span>" in page and "it answered 204" in page
    (kept,) = ada("GET", "/webhook/").get_json()["webhooks"]
    path = f"/account/webhooks/{kept['id']}"
    for action in ("test", "switch"):
        assert there.post(f"{path}/{action}", form=form).status_code == 302
    assert ada("GET", "/webhook/").get_json()["webhooks"][0]["on"] is False
    without_events = {"webhook-url": chosen["webhook-url"]}
    for wrong in (chosen | {"webhook-url": "ftp://x"}, without_events):
        refused = there.post("/account/webhooks", wrong, form=form)
        assert refused.status_code == 400 and "invalid-feedback" in refused.text
    assert there.post(f"{path}/remove", form=form).status_code == 302
    assert ada("GET", "/webhook/").get_json()["webhooks"] == []


def test_the_page_sets_mail(app: Flask, ada: Api, mail_server: MailServer) -> None:
    there = Visitor(app, "ada")
    form = "/account/notices"
    chosen = {"mail-address": "ada@example.org", "mail-failed": "y", "mail-is_on": "y"}
    assert there.post("/account/mail", chosen, form=form).status_code == 302
    assert "is not confirmed" in there.get(form).text
    eventually(lambda: mail_server.mails)
    link = confirmed_link(mail_server.mails)
    assert there.post(link, form=link).status_code == 302
    assert ada("GET", "/mail/").get_json() == {
        "address": "ada@example.org",
        "events": ["build.failed"],
        "on": True,
        "confirmed": True,
    }
    assert there.post("/account/mail", chosen | {"mail-address": "x"}, form=form).status_code == 400
    assert there.post("/account/mail/remove", form=form).status_code == 302
    assert ada("GET", "/mail/").status_code == 404
