"""The real application over HTTP, with a fake builder (`tests/service/conftest.py`), and its users' tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cic_client import Client
from cic_client.screen import Screen
from flask import Flask
from rich.console import Console
from werkzeug.serving import make_server

from service.db import accounts
from tests.client.scripted import Scripted, serving_script
from tests.conftest import PROJECT
from tests.service.conftest import (
    FakeBuilder,
    app,
    builder,
    database,
    postgresql,
    settings,
    shared_site,
    site,
)

__all__ = ["app", "builder", "database", "postgresql", "settings", "shared_site", "site"]


@dataclasses.dataclass
class Pauses:
    """What a client waits with: it notes each pause, and lets the builder go on."""

    builder: FakeBuilder
    seconds: list[float] = dataclasses.field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.builder.hold.set()
        threading.Event().wait(0.02)


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """Where the application listens."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def token_of(app: Flask, name: str) -> str:
    """Return a new token of a user."""
    engine = app.extensions["cic"].engine
    return accounts.add_token(engine, accounts.by_name(engine, name).id, "client")


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """Makes fake services of scripts."""
    with contextlib.ExitStack() as stack:
        yield lambda script: stack.enter_context(serving_script(script))


@pytest.fixture
def pauses(builder: FakeBuilder) -> Pauses:
    return Pauses(builder)


@pytest.fixture
def client(app: Flask, address: str, pauses: Pauses) -> Iterator[Client]:
    """Ada's client."""
    with Client(address, token=token_of(app, "ada"), pause=pauses) as made:
        yield made


@dataclasses.dataclass(frozen=True)
class Cic:
    """The command `cic`, run as a process; `home` is where it keeps its log-in."""

    home: Path
    environ: dict[str, str]

    def __call__(
        self, *arguments: str, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cic_client", *arguments],
            cwd=self.home,
            env={**self.environ, **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def cic(tmp_path: Path) -> Cic:
    """The command without any log-in."""
    home = tmp_path / "home"
    home.mkdir()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CIC_")}
    own = {
        "HOME": str(home),
        "PYTHONPATH": str(PROJECT / "client"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "COLUMNS": "200",
        "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",  # not whose who runs the tests
    }
    inherited.pop("XDG_CONFIG_HOME", None)
    return Cic(home, inherited | own)


@pytest.fixture
def ada(cic: Cic, app: Flask, address: str) -> Cic:
    """The command with Ada's log-in in the environment."""
    login = {"CIC_URL": address, "CIC_TOKEN": token_of(app, "ada")}
    return dataclasses.replace(cic, environ=cic.environ | login)


def screen_of(console: Console) -> Screen:
    """A screen that prints to this console alone."""
    screen = Screen()
    vars(screen).update(out=console, notes=console, live=console)
    return screen
