"""The typed client: every call of the service, what is tried again, and what is not taken."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cic_client import (
    BadInput,
    Client,
    Refused,
    UnexpectedAnswer,
    Unreachable,
    models,
    transport,
)
from cic_client.accepted import Accepted
from flask import Flask, Response, request, request_finished

from service.api.openapi import calls, document
from tests.client.conftest import Pauses, token_of
from tests.client.scripted import Scripted, send, serving_script
from tests.conftest import PROJECT
from tests.service.conftest import REQUEST, FakeBuilder
from tests.support.certificate import make_certificate

FACTS = {"facts": 1, "machine": "x86_64", "cpu": {}, "kernel": "5.14.0", "engines": []}


# ---- Every call


@contextlib.contextmanager
def heard(app: Flask) -> Iterator[set[str]]:
    """Which operations the application answers meanwhile."""
    operations: set[str] = set()

    def hear(_: Flask, response: Response, **__: Any) -> None:
        operations.add((request.endpoint or "").removeprefix("api."))

    with request_finished.connected_to(hear, app):
        yield operations


def test_every_operation_has_a_method_of_its_name_that_calls_it(
    app: Flask, address: str, client: Client, tmp_path: Path
) -> None:
    build = client.wait(client.submit(REQUEST).id)
    filename = str(build.filename)
    webhook = client.add_webhook("https://ci.example.org/hook", ["build.failed"])
    with Client(address, token=token_of(app, "root")) as root:
        arguments: dict[str, Callable[[], Any]] = {
            "submit": lambda: client.submit(REQUEST),
            "plan": lambda: client.plan(REQUEST),
            "list_builds": lambda: client.list_builds(status="FINISHED"),
            "status": lambda: client.status(build.id),
            "cancel": lambda: client.cancel(build.id),
            "log": lambda: client.log(build.id),
            "timeline": lambda: client.timeline(build.id),
            "list_images": client.list_images,
            "image": lambda: client.image(filename),
            "share": lambda: client.share(filename, ["bob"]),
            "pin": lambda: root.pin(filename),
            "unpin": lambda: root.unpin(filename),
            "document_of": lambda: client.document_of(filename, "spack.lock"),
            "packages_of": lambda: client.packages_of(filename, search="zlib", kind="spack"),
            "check": lambda: client.check(filename, "lumi-c"),
            "script_of": lambda: client.script_of(filename, "lumi-c", program="true"),
            "download": lambda: client.download(filename, tmp_path),
            "architectures": lambda: client.architectures(platform="linux/amd64"),
            "machines": client.machines,
            "recognise_machine": lambda: client.recognise_machine(FACTS),
            "list_webhooks": client.list_webhooks,
            "add_webhook": lambda: client.add_webhook("https://ci.example.org/"),
            "change_webhook": lambda: client.change_webhook(webhook.id, on=False),
            "test_webhook": lambda: client.test_webhook(webhook.id),
            "remove_webhook": lambda: client.remove_webhook(webhook.id),
            "mail": client.mail,
            "set_mail": lambda: client.set_mail("ada@example.org"),
            "remove_mail": client.remove_mail,
            "list_notices": client.list_notices,
            "list_groups": client.list_groups,
            "device_log_in": client.device_log_in,
            "log_in_with_device": lambda: client.log_in_with_device("a.b.c"),
            "revoke_token": lambda: Client(address, token=token_of(app, "ada")).revoke_token(),
            "live": client.live,
            "ready": client.ready,
            "public_keys": client.public_keys,
            "metrics": client.metrics,
            "openapi": client.openapi,
            "delete": lambda: client.delete(build.id),
        }
        assert set(arguments) == {operation for _, _, operation, _ in calls(app)}
        refused = set()
        for operation, call in arguments.items():
            assert callable(getattr(Client, operation))
            with heard(app) as operations:
                try:
                    call()
                except Refused as refusal:
                    assert refusal.status in (400, 404, 503), operation
                    refused.add(operation)
            assert operation in operations
    # A site's image cannot be shared; this one has no documents; nothing here builds, signs or sends
    # mail, and there is no OpenID provider.
    assert refused <= {
        "share",
        "document_of",
        "public_keys",
        "ready",
        "recognise_machine",
        "mail",
        "set_mail",
        "device_log_in",
        "log_in_with_device",
    }


@pytest.mark.parametrize(
    ("model", "described"),
    [
        (models.Build, "BuildAnswer"),
        (models.BuildList, "BuildList"),
        (models.Timeline, "TimelineAnswer"),
        (models.Span, "SpanAnswer"),
        (models.Plan, "PlanAnswer"),
        (models.Progress, "Progress"),
        (models.ImageSummary, "ImageSummary"),
        (models.Image, "OneImageAnswer"),
        (models.ImageList, "ImageList"),
        (models.PackageList, "PackageList"),
        (models.Package, "PackageAnswer"),
        (models.Check, "CheckAnswer"),
        (models.Finding, "FindingAnswer"),
        (models.Recognised, "RecognisedAnswer"),
        (models.Webhook, "WebhookAnswer"),
        (models.NewWebhook, "NewWebhookAnswer"),
        (models.Mail, "MailAnswer"),
        (models.Notice, "NoticeAnswer"),
        (models.Architecture, "ArchitectureAnswer"),
        (models.ArchitectureList, "ArchitectureList"),
        (models.MachineList, "MachineList"),
        (models.GroupList, "GroupList"),
        (models.DeviceLogIn, "DeviceLogIn"),
        (models.LoggedIn, "LoggedIn"),
    ],
)
def test_the_models_have_the_fields_of_the_services_description(
    app: Flask, model: type[models.Answer], described: str
) -> None:
    schema = document(app, "")["components"]["schemas"][described]
    assert set(model.model_fields) == set(schema["properties"])
    needed = {name for name, field in model.model_fields.items() if field.is_required()}
    assert needed <= set(schema["required"])


def test_what_is_read_without_models_has_the_fields_of_the_description(app: Flask) -> None:
    schema = document(app, "")["components"]["schemas"]["Accepted"]
    assert {field.name for field in dataclasses.fields(Accepted)} - {"sent"} == set(
        schema["properties"]
    )
    assert Accepted.of(b'{"id": "x", "more": 1}').as_json() == {"id": "x", "more": 1}
    assert Accepted.of(b'{"id": "x", "folder": 7}').folder is None
    for content in (b"", b"[]", b"[" * 100_000, b'{"id": 7}', b'{"id": "\xff"}', b"{}"):
        with pytest.raises(UnexpectedAnswer, match="not what a service"):
            Accepted.of(content)


def test_a_request_is_sent_without_what_only_answers_need() -> None:
    """They take longer to import than a warm service takes to answer."""
    code = (
        "import sys; import cic_client.cli, cic_client.verbs.builds; from cic_client import Client; "
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "client")},
    ).stdout.split()
    assert "cic_client.transport" in loaded and "requests" in loaded
    assert not {"pydantic", "rich", "keyring", "argcomplete", "tarfile"} & set(loaded)


def test_an_image_comes_from_a_request_with_its_log_and_its_file(
    client: Client, builder: FakeBuilder, tmp_path: Path
) -> None:
    builder.hold.clear()
    build_id = client.submit(json.dumps(REQUEST).replace("false", "False")).id
    seen = list(client.watch(build_id))
    assert seen[0].status != models.FINISHED and not seen[0].has_ended
    assert (seen[-1].status, seen[-1].push) == (models.FINISHED, False)
    log = b"".join(client.follow_log(build_id))
    assert b"built" in log and log == b"".join(client.log_so_far(build_id))
    told: list[tuple[int, int]] = []
    path = client.download(str(seen[-1].filename), tmp_path, progress=lambda *now: told.append(now))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == seen[-1].sha256
    assert told[-1] == (seen[-1].size_bytes, seen[-1].size_bytes)
    assert list(tmp_path.glob("*.part")) == []


def test_a_folder_is_sent_without_gits_files_and_owners(
    app: Flask, client: Client, tmp_path: Path
) -> None:
    step = tmp_path / "step"
    (step / ".git").mkdir(parents=True)
    os.mkfifo(step / ".git" / "pipe")  # would be refused
    (step / "eflows4hpc.yaml").write_text("apt:\n  - bc\n")
    (step / "run.sh").write_text("#!/bin/sh\n")
    os.link(step / "run.sh", step / "again.sh")  # so would a hard link
    (step / "link").symlink_to("run.sh")
    wanted = {"machine": REQUEST["machine"], "push": False, "name": "mine"}
    accepted = client.submit(wanted, folder=step)
    assert accepted.folder is not None
    assert client.submit(wanted | {"folder": accepted.folder}).id != accepted.id
    (step / "eflows4hpc.yaml").write_text("apt: 7\n")
    with pytest.raises(Refused, match="apt"):
        client.submit(wanted, folder=step)
    with pytest.raises(BadInput, match="no folder"):
        client.submit(wanted, folder=step / "run.sh")


def test_a_refusal_names_every_wrong_field(client: Client) -> None:
    with pytest.raises(Refused) as refusal:
        client.submit(REQUEST | {"machine": {"platform": "linux/none"}, "colour": "red"})
    assert refusal.value.status == 400
    assert {wrong.field for wrong in refusal.value.problem.errors} >= {"colour"}
    assert "colour" in str(refusal.value)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../build"])
def test_a_name_stays_one_segment_of_a_path(client: Client, name: str) -> None:
    with pytest.raises(BadInput, match="no build id or image name"):
        client.status(name)


@pytest.mark.parametrize(
    "address",
    ["example.org", "ftp://example.org", "https://a:b@example.org", "https://x/?a", "http://x y"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match="address"):
        Client(address)


def test_a_login_is_in_no_text_of_its_object() -> None:
    assert "canary" not in repr(transport.Login(token="canary", user="a", password="canary"))


# ---- What misbehaves


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_when_it_says(
    scripted: Scripted, pauses: Pauses, status: int
) -> None:
    def script(handler: BaseHTTPRequestHandler, number: int) -> None:
        if number < 3:
            send(handler, status, Retry_After="7")
        else:
            send(handler, 200, b'{"id": "x"}')

    service = scripted(script)
    with Client(service.address, token="t", pause=pauses) as client:
        assert client.submit({}).id == "x"
    assert pauses.seconds == [7.0, 7.0]
    assert len(service.requests) == 3


def test_who_asks_for_a_long_pause_is_not_waited_for(scripted: Scripted, pauses: Pauses) -> None:
    service = scripted(lambda handler, _: send(handler, 429, Retry_After="3600"))
    with (
        Client(service.address, token="t", pause=pauses) as client,
        pytest.raises(Refused, match="429"),
    ):
        client.submit({})
    assert pauses.seconds == [] and len(service.requests) == 1


def test_a_request_that_may_have_been_taken_is_not_sent_twice(
    scripted: Scripted, pauses: Pauses
) -> None:
    service = scripted(lambda handler, _: handler.connection.close())
    with Client(service.address, token="t", pause=pauses) as client:
        with pytest.raises(Unreachable):
            client.submit({})
        assert len(service.requests) == 1
        with pytest.raises(Unreachable):
            client.status("x")
    assert len(service.requests) == 1 + transport.TRIES


def test_nobody_there_is_said_after_some_tries(pauses: Pauses) -> None:
    with (
        Client("http://127.0.0.1:9", token="t", pause=pauses) as client,
        pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"),
    ):
        client.submit({})
    assert pauses.seconds == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"status": 7}', b"[" * 100_000, b'{"id": "\xff"}', b""]
)
def test_what_is_no_answer_of_such_a_service_is_said(scripted: Scripted, body: bytes) -> None:
    service = scripted(lambda handler, _: send(handler, 200, body))
    with (
        Client(service.address, token="t") as client,
        pytest.raises(UnexpectedAnswer, match="not what a service"),
    ):
        client.status("x")


def test_an_endless_answer_ends(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 1000)
    service = scripted(lambda handler, _: send(handler, 200, b" " * 100_000))
    with (
        Client(service.address, token="t") as client,
        pytest.raises(UnexpectedAnswer, match="larger than 1000 bytes"),
    ):
        client.status("x")


def test_a_login_does_not_follow_a_redirect_to_another_place(scripted: Scripted) -> None:
    other = scripted(lambda handler, _: send(handler, 200, b'{"status": "alive"}'))
    service = scripted(lambda handler, _: send(handler, 302, Location=f"{other.address}/x"))
    with Client(service.address, token="canary") as client:
        assert client.live().status == "alive"
        with pytest.raises(UnexpectedAnswer, match="another address"):
            client.submit({})
    ((_, _, headers),) = other.requests
    assert "canary" not in str(headers)
    assert "canary" in str(service.requests)


def test_a_redirect_leads_to_no_file(scripted: Scripted) -> None:
    service = scripted(lambda handler, _: send(handler, 302, Location="file:///etc/passwd"))
    with (
        Client(service.address, token="t") as client,
        pytest.raises(UnexpectedAnswer, match="does not follow"),
    ):
        client.live()


def test_a_watched_service_may_be_away_for_a_while(scripted: Scripted, pauses: Pauses) -> None:
    def script(handler: BaseHTTPRequestHandler, number: int) -> None:
        if 1 < number < 12:
            send(handler, 503)
        else:
            status = "BUILDING" if number == 1 else "FINISHED"
            build = {"id": "x", "status": status, "image_id": "i", "created_at": ""}
            send(handler, 200, json.dumps(build).encode())

    with Client(scripted(script).address, token="t", pause=pauses) as client:
        assert client.wait("x").status == "FINISHED"
    assert max(pauses.seconds) == 10.0


def test_a_service_that_is_away_from_the_beginning_is_not_waited_for(
    scripted: Scripted, pauses: Pauses
) -> None:
    service = scripted(lambda handler, _: send(handler, 503))
    with (
        Client(service.address, token="t", pause=pauses) as client,
        pytest.raises(Refused, match="503"),
    ):
        client.wait("x")
    assert len(service.requests) == transport.TRIES


# ---- The way to a service


def live(handler: BaseHTTPRequestHandler, _: int) -> None:
    send(handler, 200, b'{"status": "alive"}')


def test_a_pause_may_be_named_as_a_time(scripted: Scripted, pauses: Pauses) -> None:
    later = email.utils.formatdate(time.time() + 20, usegmt=True)

    def script(handler: BaseHTTPRequestHandler, number: int) -> None:
        send(handler, 503 if number == 1 else 200, b'{"id": "x"}', Retry_After=later)

    with Client(scripted(script).address, token="t", pause=pauses) as client:
        client.submit({})
    assert 0 < pauses.seconds[0] <= 20


@pytest.mark.parametrize("asked", ["soon", "-1", "9" * 50, "Mon, 99 Foo 2026 99:99:99 GMT", "²"])
def test_a_pause_that_is_none_is_not_heard(scripted: Scripted, pauses: Pauses, asked: str) -> None:
    def script(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.headers["x"] = ""
        send(
            handler,
            503 if number == 1 else 200,
            b'{"id": "x"}',
            Retry_After=asked.encode("latin-1").decode("latin-1"),
        )

    with Client(scripted(script).address, token="t", pause=pauses) as client:
        client.submit({})
    assert pauses.seconds == [1.0]


def test_a_proxy_of_the_environment_is_asked(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = scripted(live)
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.address)
    with Client("http://cic.example.org", token="t") as client:
        assert client.live().status == "alive"
    assert proxy.requests[0][1] == "http://cic.example.org/image_creation/health/live"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    service = scripted(live)
    with Client(service.address, token="t") as client:
        client.live()
    assert len(proxy.requests) == 1 and len(service.requests) == 1


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_an_authority_of_the_environment_is_trusted_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, name: str
) -> None:
    for other in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    certificate, key = make_certificate(tmp_path)
    with serving_script(live, (certificate, key)) as service:
        with (
            Client(service.address, token="t", pause=pauses) as client,
            pytest.raises(Unreachable, match="certificate"),
        ):
            client.live()
        assert service.requests == [] and pauses.seconds == []
        monkeypatch.setenv(name, str(certificate))
        with Client(service.address, token="t") as client:
            assert client.live().status == "alive"
