"""Fixtures: a forger in the place of an OpenID provider, and applications that know it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from service.oidc import provider as provider_module
from service.oidc import transport
from tests.service.conftest import FakeBuilder, running_app
from tests.support.forging_provider import (
    CLIENT,
    DEVICE,
    SECRET,
    ForgingProvider,
    forging_provider,
)
from tests.support.site import Site


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and metadata may be read again at once, and a slow answer is one sooner."""
    monkeypatch.setattr(provider_module, "AGAIN_AFTER_S", 0.0)
    monkeypatch.setattr(transport, "ANSWER_S", 1.0)
    monkeypatch.setattr(transport, "READ_S", 1.0)


@pytest.fixture(scope="module")
def forging() -> Iterator[ForgingProvider]:
    with forging_provider() as forger:
        yield forger


@pytest.fixture
def forger(forging: ForgingProvider) -> ForgingProvider:
    forging.keys, forging.metadata, forging.token, forging.user_info = [forging.key], {}, {}, {}
    forging.raw, forging.asked = {}, []
    return forging


Started = Callable[..., Flask]


@pytest.fixture
def started(site: Site, builder: FakeBuilder, forger: ForgingProvider) -> Iterator[Started]:
    """Start an application that knows the forger, with more settings."""
    running: list[running_app] = []

    def start(**changes: str) -> Flask:
        environ = {
            "CIC_OIDC_ISSUER": forger.issuer,
            "CIC_OIDC_CLIENT_ID": CLIENT,
            "CIC_OIDC_CLIENT_SECRET": SECRET,
            "CIC_OIDC_DEVICE_CLIENT_ID": DEVICE,
            "CIC_OIDC_NAME": "the institute",
            "CIC_OIDC_GROUPS_CLAIM": "groups",
            **changes,
        }
        running.append(running_app(site.with_environ(**environ).settings, builder))
        return running[-1].__enter__()

    yield start
    for one in running:
        one.__exit__()
