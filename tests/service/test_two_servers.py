"""Two servers, each with its own processes, on one database: what one is told, the other knows at
once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests

from service.auth import MAX_FAILURES
from tests.support.site import PASSWORD, USER, Service, make_site, running_service

WRONG = "not the password"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    site = make_site(tmp_path_factory.mktemp("site"))
    with running_service(site, name="one") as one, running_service(site, name="two") as two:
        yield one, two


class Browser:
    """Somebody logged in on the pages of one server."""

    def __init__(self, service: Service) -> None:
        self._root = f"{service.url}/image_creation"
        self._session = requests.Session()
        self.post("/login", "/login", name=USER, password=PASSWORD)

    def post(self, page: str, path: str, **fields: str) -> str:
        text = self._session.get(
            self._root + page, headers={"Accept": "text/html"}, timeout=60
        ).text
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', text)
        assert token, text
        answer = self._session.post(
            self._root + path,
            data={"csrf_token": token[1], **fields},
            headers={"Accept": "text/html"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        return answer.text


def status(service: Service, user: str, password: str = "") -> int:
    return service.call("GET", "/build/", user=user, password=password).status_code


def test_a_revoked_token_is_refused_by_the_other_at_once(servers: tuple[Service, Service]) -> None:
    one, two = servers
    browser = Browser(one)
    made = browser.post("/account", "/account/tokens", name="laptop", life="7", scopes="read build")
    token = re.search(r"cic_[\w-]{30,}", made)
    number = re.search(r"/account/tokens/(\d+)/revoke", made)
    assert token and number
    for _ in range(20):
        assert (status(one, token[0]), status(two, token[0])) == (200, 200)

    browser.post("/account", f"/account/tokens/{number[1]}/revoke")

    for _ in range(20):
        assert (status(two, token[0]), status(one, token[0])) == (401, 401)


def test_another_password_counts_for_both_at_once(servers: tuple[Service, Service]) -> None:
    one, two = servers
    browser = Browser(one)
    assert {status(two, USER, PASSWORD) for _ in range(10)} == {
        200
    }  # remembered by every process of the other
    browser.post(
        "/account",
        "/account/password",
        present=PASSWORD,
        password="another password",
        repeated="another password",
    )
    assert {status(two, USER, PASSWORD) for _ in range(10)} == {401}
    assert status(two, USER, "another password") == 200
    browser.post(
        "/account",
        "/account/password",
        present="another password",
        password=PASSWORD,
        repeated=PASSWORD,
    )


def test_wrong_passwords_are_counted_over_both(servers: tuple[Service, Service]) -> None:
    answers = [status(servers[number % 2], "nobody", WRONG) for number in range(MAX_FAILURES + 6)]
    assert answers == [401] * MAX_FAILURES + [429] * 6
