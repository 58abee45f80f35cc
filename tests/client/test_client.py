"""The typed client: every call of the service, what is tried again, and what is not taken."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cic_client import (
    BadInput,
    Client,
    Refused,
    UnexpectedAnswer,
    Unreachable,
    WrongChecksum,
    models,
    transport,
)
from flask import Flask, Response, request, request_finished

from service.api.openapi import calls, document
from tests.client.conftest import Pauses, token_of
from tests.service.conftest import REQUEST, FakeBuilder

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
    # A site's image cannot be shared; this one has no documents; nothing here builds, signs or sends mail.
    assert refused <= {
        "share",
        "document_of",
        "public_keys",
        "ready",
        "recognise_machine",
        "mail",
        "set_mail",
    }


@pytest.mark.parametrize(
    ("model", "described"),
    [
        (models.Build, "BuildAnswer"),
        (models.BuildList, "BuildList"),
        (models.Timeline, "TimelineAnswer"),
        (models.Span, "SpanAnswer"),
        (models.Plan, "PlanAnswer"),
        (models.Accepted, "Accepted"),
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
    ],
)
def test_the_models_have_the_fields_of_the_services_description(
    app: Flask, model: type[models.Answer], described: str
) -> None:
    schema = document(app, "")["components"]["schemas"][described]
    assert set(model.model_fields) == set(schema["properties"])
    needed = {name for name, field in model.model_fields.items() if field.is_required()}
    assert needed <= set(schema["required"])


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

Script = Callable[[BaseHTTPRequestHandler, int], None]


class FakeService:
    """A fake: a server that answers by a script, which gets the number of the request."""

    def __init__(self, script: Script) -> None:
        requests = self.requests = []  # type: list[tuple[str, str, dict[str, str]]]

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                requests.append((self.command, self.path, dict(self.headers)))
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self.close_connection = True
                script(self, len(requests))

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], FakeService]]:
    made: list[FakeService] = []

    def make(script: Script) -> FakeService:
        made.append(FakeService(script))
        threading.Thread(target=made[-1].server.serve_forever, args=(0.05,), daemon=True).start()
        return made[-1]

    yield make
    for service in made:
        service.server.shutdown()
        service.server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"{}", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    with contextlib.suppress(OSError):  # the client may have gone
        handler.wfile.write(body)


Scripted = Callable[[Script], FakeService]


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


# ---- Downloads

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def image_of(**changes: Any) -> bytes:
    image = {
        "filename": "a.sif", "image_id": "a", "identity": "i", "platform": "linux/amd64", "created_at": "",
        "sha256": SHA256, "size_bytes": len(CONTENT),
    }  # fmt: skip
    return json.dumps(image | changes).encode()


def serving(content: bytes, *, cut_after: int | None = None, **changes: Any) -> Script:
    """A script of a service that has one image, and may cut the first download."""
    downloads: list[int] = []

    def script(handler: BaseHTTPRequestHandler, _: int) -> None:
        if "/images/download/" not in handler.path:
            send(handler, 200, image_of(**changes))
            return
        downloads.append(1)
        asked = handler.headers.get("Range", "bytes=0-")
        begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = content[begin:]
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body[: cut_after if len(downloads) == 1 else None])

    return script


def test_a_download_that_breaks_goes_on(scripted: Scripted, pauses: Pauses, tmp_path: Path) -> None:
    service = scripted(serving(CONTENT, cut_after=200_000))
    with Client(service.address, token="t", pause=pauses) as client:
        path = client.download("a.sif", tmp_path)
    assert path.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [path]
    (_, _, first), (_, _, second) = service.requests[1:]
    assert "Range" not in first
    assert (second["Range"], second["If-Range"]) == ("bytes=196608-", f'"{SHA256}"')


def test_what_a_download_left_is_completed_by_the_next(
    scripted: Scripted, pauses: Pauses, tmp_path: Path
) -> None:
    broken = scripted(serving(CONTENT[:100_000]))
    with (
        Client(broken.address, token="t", pause=pauses) as client,
        pytest.raises(Unreachable, match="resumes it"),
    ):
        client.download("a.sif", tmp_path)
    (part,) = tmp_path.iterdir()
    assert (part.name, part.stat().st_size) == (f"a.sif.{SHA256[:8]}.part", 100_000)
    service = scripted(serving(CONTENT))
    with Client(service.address, token="t") as client:
        assert client.download("a.sif", tmp_path).read_bytes() == CONTENT
    assert service.requests[-1][2]["Range"] == "bytes=100000-"


def test_what_is_here_already_is_not_fetched(scripted: Scripted, tmp_path: Path) -> None:
    (tmp_path / "a.sif").write_bytes(CONTENT)
    service = scripted(serving(CONTENT))
    with Client(service.address, token="t") as client:
        assert client.download("a.sif", tmp_path).read_bytes() == CONTENT
    assert [path for _, path, _ in service.requests] == ["/image_creation/image/a.sif"]


def test_another_file_than_the_one_that_was_named_does_not_stay(
    scripted: Scripted, tmp_path: Path
) -> None:
    service = scripted(serving(CONTENT[::-1] + b"and more"))
    with Client(service.address, token="t") as client:
        with pytest.raises(WrongChecksum, match="removed"):
            client.download("a.sif", tmp_path)
        with pytest.raises(UnexpectedAnswer, match="another image"):
            client.download("a.sif", tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("filename", [".bashrc", "-x", "a b", "a\n", "x" * 300, "a\x1b[2J"])
def test_a_server_does_not_choose_a_strange_file(
    scripted: Scripted, tmp_path: Path, filename: str
) -> None:
    service = scripted(serving(CONTENT, filename=filename))
    with Client(service.address, token="t") as client, pytest.raises(UnexpectedAnswer):
        client.download(filename, tmp_path)
    assert list(tmp_path.iterdir()) == []
