"""A word at the end arrives once, though the service and its receivers are killed in between.

Everything is a process of its own, and each is killed with signal 9. The build is short: it fails
for want of disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from service.db import accounts
from service.db.database import make_engine
from tests.conftest import PROJECT
from tests.service.test_notices import MailServer, keep_confirmed
from tests.support.site import (
    MACHINE,
    USER,
    Service,
    Site,
    free_port,
    listens,
    make_site,
    running_service,
)

REQUEST = {"machine": MACHINE, "workflow": "demo", "step_id": "hello", "push": False}
ADDRESS = "ada@example.org"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = make_site(tmp_path_factory.mktemp("site")).with_environ(
        CIC_BUILD_MIN_FREE_BYTES=str(10**18),
        CIC_WEB_PROCESSES="1",
        CIC_ALLOWED_WEBHOOK_SCHEMES="http",
        CIC_ALLOWED_WEBHOOK_NETWORKS="127.0.0.0/8",
        CIC_PUBLIC_URL="http://127.0.0.1/image_creation",
        CIC_SMTP_HOST="127.0.0.1",
        CIC_SMTP_PORT=str(free_port()),
        CIC_SMTP_SECURITY="none",
        CIC_MAIL_SENDER="cic@example.org",
    )
    made.add_step("demo", "hello", {"eflows4hpc.yaml": "apt:\n  - bc\n"})
    return made


@pytest.fixture
def mail_server(site: Site) -> Iterator[MailServer]:
    """A mail server that the test starts when it likes."""
    server = MailServer(int(site.environ["CIC_SMTP_PORT"]))
    yield server
    server.controller.stop()


def kill_service(site: Site) -> int:
    """Kill every process of a site's service, the pool too; return how many there were."""
    mark = f"CIC_SECRET_KEY={site.environ['CIC_SECRET_KEY']}".encode()
    killed = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
                killed += 1
        except OSError:
            continue
    return killed


def until(what: Callable[[], Any], timeout_s: float = 180) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "that did not happen"
        time.sleep(0.1)
    return found


def start_receiver(port: int, secret: str, file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.support.receiver", str(port), json.dumps(secret)]
    process = subprocess.Popen([*command, str(file)], cwd=PROJECT)
    until(lambda: listens(port))
    return process


def told_of(file: Path, build_id: str) -> list[str]:
    """The notices of a build that a receiver wrote down, by their ids."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [line.split()[0] for line in lines if line.split()[2] == build_id]


def mails_of(server: MailServer, build_id: str) -> list[str]:
    return [mail["Message-ID"] for _, mail in server.mails if build_id in mail.get_payload()]


def add_webhook(service: Service, port: int) -> str:
    url = f"http://127.0.0.1:{port}/hook"
    answer: requests.Response = service.call("POST", "/webhook/", json={"url": url})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["secret"])


def test_webhook_and_mail_arrive_once_through_kills(
    site: Site, mail_server: MailServer, tmp_path: Path
) -> None:
    file, port = tmp_path / "received", free_port()
    with running_service(site, name="first") as service:
        engine = make_engine(site.settings.service.database)
        keep_confirmed(engine, accounts.by_name(engine, USER).id, ADDRESS)
        engine.dispose()
        kept = service.call("POST", "/mail/", json={"address": ADDRESS}).json()
        assert kept["confirmed"] and kept["on"]
        secret = add_webhook(service, port)
        first = service.submit(REQUEST)
        assert service.wait_for(first)["error_code"] == "NO_SPACE"
        # Nobody listens at either end: both notices were tried at least once, and wait.
        until(lambda: all(one["tries"] for one in listed(service)) and len(listed(service)) == 2)
        assert kill_service(site) > 1
    receiver = start_receiver(port, secret, file)
    try:
        mail_server.controller.start()
        with running_service(site, name="second", with_user=False) as service:
            until(lambda: told_of(file, first) and mails_of(mail_server, first))
            until(lambda: all(one["outcome"] == "sent" for one in listed(service)))
            receiver.kill()
            receiver.wait()
            second = service.submit(REQUEST | {"force": True})
            until(lambda: any(one["build"] == second and one["tries"] for one in listed(service)))
            receiver = start_receiver(port, secret, file)
            until(lambda: told_of(file, second) and mails_of(mail_server, second))
            until(lambda: all(one["outcome"] == "sent" for one in listed(service)))
            for build_id in (first, second):
                (webhook_notice,) = told_of(file, build_id)
                (message_id,) = mails_of(mail_server, build_id)
                ids = {one["id"] for one in listed(service) if one["build"] == build_id}
                assert ids == {webhook_notice, message_id.strip("<>").partition("@")[0]}
    finally:
        receiver.kill()
        receiver.wait()


def listed(service: Service) -> list[dict[str, Any]]:
    return list(service.call("GET", "/notice/").json()["notices"])
