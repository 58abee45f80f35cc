"""What tests judge by: the parts of `tests/support` that decide something, and tests themselves."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.support.browser import network_addresses

SERVICE = "http://127.0.0.1:5000/image_creation/"


def asked(url: str, *, by: str = SERVICE) -> dict[str, object]:
    params = {"documentURL": by, "request": {"url": url}}
    return {"method": "Network.requestWillBeSent", "params": params}


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


@pytest.mark.parametrize("page", ["chrome://new-tab-page/", "next-release://welcome/"])
def test_what_a_page_of_the_browser_asks_for_is_not_the_sites(page: str) -> None:
    assert network_addresses([asked("https://elsewhere.example/doodle", by=page)]) == set()


@pytest.mark.parametrize("document", [SERVICE, "about:srcdoc", "data:text/html,x", "blob:x", ""])
def test_what_a_document_of_a_site_asks_for_is(document: str) -> None:
    url = "https://elsewhere.example/font"
    assert network_addresses([asked(url, by=document)]) == {url}


IMPORTING = re.compile(r"from ((?:image_builder|service|config|tests)[\w.]*) import (\w+)")


@pytest.mark.parametrize("folder", ["unit", "service", "system", "cluster", "support"])
def test_programs_in_texts_import_what_there_is(folder: str) -> None:
    """No tool that moves a module changes the programs that tests hand to another Python."""
    for path in sorted((PROJECT / "tests" / folder).rglob("*.py")):
        for module, name in IMPORTING.findall(path.read_text("utf-8")):
            assert _has(module, name), f"{path.relative_to(PROJECT)}: {module} has no {name}"


def _has(module: str, name: str) -> bool:
    found = importlib.import_module(module)
    return hasattr(found, name) or (Path(str(found.__file__)).parent / f"{name}.py").exists()


@pytest.mark.parametrize("folder", ["unit", "service", "cluster", "support"])
def test_nothing_imports_from_the_system_tests(folder: str) -> None:
    paths = [*(PROJECT / "tests" / folder).rglob("*.py"), *(PROJECT / "benchmarks").glob("*.py")]
    for path in [*paths, PROJECT / "scripts" / "screenshots"]:
        imported = [module for module, _ in IMPORTING.findall(path.read_text("utf-8"))]
        assert not [module for module in imported if module.startswith("tests.system")], path
