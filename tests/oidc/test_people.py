"""People log in: in a real browser on the pages, and with `cic login` in a real terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cic_client.text import printable

from service.db import accounts
from service.db.database import make_engine
from tests.conftest import PROJECT
from tests.oidc.conftest import environ
from tests.support.browser import Browser, browser
from tests.support.openid_provider import OpenIdProvider, PersonAtProvider
from tests.support.site import Service, make_site, running_service

AFTER_S = 300


@pytest.fixture(scope="module")
def service(
    running_provider: OpenIdProvider, service_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The service itself, whose pages the provider sends browsers back to. It builds nothing here."""
    site = make_site(tmp_path_factory.mktemp("site"))
    changed = site.with_environ(**environ(running_provider, CIC_OIDC_LOCAL_ACCOUNTS="false"))
    with running_service(changed, port=service_port, with_user=False) as running:
        yield running


@pytest.fixture
def page(service: Service, tmp_path: Path) -> Iterator[Browser]:
    with browser(f"{service.url}/image_creation", tmp_path / "profile") as opened:
        yield opened


def test_a_person_logs_in_with_a_browser_and_out(
    provider: OpenIdProvider, service: Service, page: Browser
) -> None:
    page.open("/images?search=zlib")
    assert page.all("input[name=password]") == []
    page.click("#openid")
    page.wait(lambda: page.driver.current_url.startswith(provider.issuer))
    page.fill(login="ada", password="any")
    page.click("button[type=submit]")
    page.wait(lambda: page.path == "/images?search=zlib")
    page.open("/account")
    assert "ada.lovelace" in page.text("h1") and "climate, ops" in page.text("#groups")
    assert page.all("#password-title") == []
    page.open("/admin")
    assert "ada.lovelace" in page.text()
    page.click("header form button")
    page.wait(lambda: page.path.startswith("/login"))
    page.open("/builds")
    assert page.path.startswith("/login")
    assert [text for text in page.complaints() if text.startswith(service.url)] == []


class Terminal:
    """A program in a terminal of its own; `text` is what it has shown, without its colours."""

    def __init__(self, *command: str, home: Path, **more: str) -> None:
        self._raw, self.text = b"", ""
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=home,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "TERM": "xterm",
                "COLUMNS": "100",
                "PYTHONPATH": str(PROJECT / "client"),
                "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
                **more,
            },
            start_new_session=True,
        )
        os.close(theirs)

    def read_until(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + AFTER_S
        while (match := re.search(pattern, self.text)) is None:
            assert time.monotonic() < end and self._read(), self.text
        return match

    def ended(self) -> int:
        end = time.monotonic() + AFTER_S
        while self._read():
            assert time.monotonic() < end, self.text
        os.close(self._own)
        return self.process.wait(AFTER_S)

    def _read(self) -> bool:
        if not select.select([self._own], [], [], AFTER_S)[0]:
            return False
        with contextlib.suppress(OSError):  # how Linux says that the program has ended
            if block := os.read(self._own, 65536):
                self._raw += block
                self.text = printable(self._raw.decode("utf-8", "replace"))
                return True
        return False


def cic(service: Service, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `cic` with the log-in that is kept in a home."""
    return subprocess.run(
        [sys.executable, "-m", "cic_client", *arguments],
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(PROJECT / "client"),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_person_logs_in_with_a_terminal_and_has_to_again(
    provider: OpenIdProvider, service: Service, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    terminal = Terminal(sys.executable, "-m", "cic_client", "login", service.url, home=home)
    address = terminal.read_until(rf"({provider.issuer}\S+)\s")[1]
    code = terminal.read_until(r"The code is ([A-Z0-9-]+)\.")[1]
    assert "Example Institute" in terminal.text and code in address
    assert "Sign-in Success" in PersonAtProvider().confirm_device(address, "dan")
    assert terminal.ended() == 0, terminal.text
    assert "You are dan." in terminal.text and "The log-in is kept in" in terminal.text
    assert "cic_" not in terminal.text  # the token is nobody's to see
    assert cic(service, home, "builds", "--json").returncode == 0

    engine = make_engine(service.site.settings.service.database)
    user_id = accounts.by_name(engine, "dan").id
    (kept,) = accounts.tokens_of(engine, user_id)
    assert kept.name.startswith("cic on ")
    accounts.change_user(engine, "dan", is_active=False)
    blocked = cic(service, home, "builds")
    accounts.change_user(engine, "dan", is_active=True)
    assert cic(service, home, "builds").returncode == 0
    accounts.revoke_token(engine, user_id, kept.id)
    revoked = cic(service, home, "builds")
    engine.dispose()
    for refused in (blocked, revoked):
        assert refused.returncode == 1
        assert "Log in again with `cic login`" in refused.stderr


def test_a_person_who_refuses_is_told_so(
    provider: OpenIdProvider, service: Service, tmp_path: Path
) -> None:
    terminal = Terminal(sys.executable, "-m", "cic_client", "login", service.url, home=tmp_path)
    address = terminal.read_until(rf"({provider.issuer}\S+)\s")[1]
    PersonAtProvider().confirm_device(address, "dan", refuses=True)
    assert terminal.ended() == 1
    assert "The log-in was refused" in terminal.text
    assert not list(tmp_path.rglob("login.json"))
