"""A real OpenID provider, an application that logs users in with it, and both as people see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from tests.service.conftest import (
    ROOT,
    FakeBuilder,
    builder,
    database,
    postgresql,
    running_app,
    settings,
    shared_site,
    site,
)
from tests.service.test_web import Visitor
from tests.support.openid_provider import (
    CLIENT,
    DEVICE,
    SECRET,
    USERS,
    OpenIdProvider,
    PersonAtProvider,
    openid_provider,
)
from tests.support.site import Site, free_port

__all__ = ["builder", "database", "postgresql", "settings", "shared_site", "site"]

BACK = f"http://localhost{ROOT}/login/openid/back"
"""Where Flask's client stands for a browser."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.oidc)


@pytest.fixture(scope="session")
def service_port() -> int:
    """Where a service listens whose pages a real browser opens: the provider knows the address."""
    return free_port()


@pytest.fixture(scope="session")
def running_provider(
    tmp_path_factory: pytest.TempPathFactory, service_port: int
) -> Iterator[OpenIdProvider]:
    back = f"http://127.0.0.1:{service_port}{ROOT}/login/openid/back"
    folder = tmp_path_factory.mktemp("openid") / "provider"
    with openid_provider(folder, [BACK, back]) as provider:
        yield provider


@pytest.fixture
def provider(running_provider: OpenIdProvider) -> Iterator[OpenIdProvider]:
    """The provider as every test finds it."""
    running_provider.say_of(USERS)
    yield running_provider
    if running_provider.options:
        running_provider.start()


def environ(provider: OpenIdProvider, **changes: str) -> dict[str, str]:
    """The settings of a service that logs in with the provider."""
    return {
        "CIC_OIDC_ISSUER": provider.issuer,
        "CIC_OIDC_CLIENT_ID": CLIENT,
        "CIC_OIDC_CLIENT_SECRET": SECRET,
        "CIC_OIDC_DEVICE_CLIENT_ID": DEVICE,
        "CIC_OIDC_NAME": "Example Institute",
        "CIC_OIDC_SCOPES": "openid,profile,groups",
        "CIC_OIDC_GROUPS_CLAIM": "groups",
        "CIC_OIDC_ADMINISTRATOR_GROUPS": "ops",
        **changes,
    }


Started = Callable[..., Flask]


@pytest.fixture
def started(site: Site, builder: FakeBuilder, provider: OpenIdProvider) -> Iterator[Started]:
    """Start an application that knows the provider, with more settings."""
    running: list[running_app] = []

    def start(**changes: str) -> Flask:
        changed = site.with_environ(**environ(provider, **changes))
        running.append(running_app(changed.settings, builder))
        return running[-1].__enter__()

    yield start
    for one in running:
        one.__exit__()


class Person(Visitor):
    """A browser without eyes, at the service and at the provider."""

    def __init__(self, app: Flask, **options: Any) -> None:
        super().__init__(app)
        self.at_provider = PersonAtProvider(**options)

    def answer_of_provider(self, user: str) -> str:
        """Where the provider sends the browser at last: the service's address with a code."""
        begun = self.client.get(f"{ROOT}/login/openid")
        assert begun.status_code == 302 and not begun.location.startswith(ROOT), self.told()
        return self.at_provider.log_in(begun.location, user, BACK)

    def bring(self, answer: str) -> None:
        self.client.get(answer.removeprefix("http://localhost"))

    def log_in_at_provider(self, user: str) -> Person:
        self.bring(self.answer_of_provider(user))
        return self

    @property
    def name(self) -> str | None:
        """Who is logged in."""
        page = self.get("/account")
        is_there = page.status_code == 200
        return page.text.partition("<h1>")[2].partition("</h1>")[0] if is_there else None

    def told(self) -> str:
        """What the log-in page says above its form."""
        return self.get("/login").text.partition('role="status">')[2].partition("</div>")[0]
