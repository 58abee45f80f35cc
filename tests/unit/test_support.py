"""What tests judge by: the parts of `tests/support` that decide something."""

from __future__ import annotations

import pytest

from tests.support.browser import network_addresses


def asked(url: str) -> dict[str, object]:
    return {"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}}


@pytest.mark.parametrize(
    "url",
    [
        "chrome://new-tab-page/icons.js",
        "chrome-untrusted://new-tab-page/custom_background_image",
        "chrome-extension://abcdef/page.html",
        "devtools://devtools/bundled/",
        "about:blank",
        "data:text/plain,hello",
        "blob:http://127.0.0.1:5000/0123",
        "next-release://of/the/browser",
    ],
)
def test_what_stays_in_the_browser_is_no_foreign_host(url: str) -> None:
    assert network_addresses([asked(url)]) == set()


@pytest.mark.parametrize("scheme", ["http", "HTTPS", "ftp"])
def test_a_foreign_host_is_seen_even_if_it_is_named_like_a_page_of_the_browser(scheme: str) -> None:
    url = f"{scheme}://new-tab-page/icons.js"
    assert network_addresses([asked(url), asked("about:blank")]) == {url}


@pytest.mark.parametrize("method", ["Network.webSocketCreated", "Network.webTransportCreated"])
def test_a_connection_counts_as_a_request(method: str) -> None:
    url = "wss://elsewhere.example/live" if "Socket" in method else "https://elsewhere.example/live"
    assert network_addresses([{"method": method, "params": {"url": url}}]) == {url}


def test_an_answer_is_no_request() -> None:
    event = {
        "method": "Network.responseReceived",
        "params": {"response": {"url": "http://a.example/"}},
    }
    assert network_addresses([event]) == set()
