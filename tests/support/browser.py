"""Drive a real browser without a screen: Chromium, through its driver."""

from __future__ import annotations

import contextlib
import json
import shutil
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import (
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
)
REPLACED = (NoSuchElementException, StaleElementReferenceException)
"""What happens to somebody who looks while a page changes."""

OPEN_TRIES = 3
ARRIVED = """return !window.isLeft && document.readyState === 'complete'
    && location.protocol.startsWith('http') && document.body !== null"""
"""Whether another document of a site is there, whole."""

_NETWORK_SCHEMES = frozenset({"http", "https", "ws", "wss", "ftp"})
"""What leaves the browser. Every release has more schemes of its own: `chrome-untrusted:` came with
Chromium 150.
"""
_SITE_SCHEMES = _NETWORK_SCHEMES | {"about", "blob", "data"}
"""What a site's documents have. A document with another scheme is a page of the browser itself,
such as its new tab, and what that asks for is the browser's own business.
"""


def network_addresses(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return what the documents of sites ask for over a network, from DevTools events."""
    asked = (address for event in events for address in _asked(event["method"], event["params"]))
    return {address for address in asked if _scheme(address) in _NETWORK_SCHEMES}


def _asked(method: str, params: Mapping[str, Any]) -> Iterator[str]:
    if method == "Network.requestWillBeSent":
        if _scheme(params.get("documentURL") or "about:") in _SITE_SCHEMES:
            yield params["request"]["url"]
    elif method in ("Network.webSocketCreated", "Network.webTransportCreated"):
        yield params["url"]


def _scheme(address: str) -> str:
    return urllib.parse.urlsplit(address).scheme


def programs() -> tuple[str, str]:
    """Return where Chromium and its driver are."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and driver, (
        "chromium and chromium-driver are not installed: scripts/setup --tests installs them"
    )
    return chromium, driver


class Browser:
    """One browser with cookies of its own; `root` is the address of the service's first page."""

    def __init__(self, driver: webdriver.Chrome, root: str) -> None:
        self.driver = driver
        self.root = root

    def open(self, path: str) -> None:
        """Open a page of the service; an address with a scheme is opened as it is.

        The driver may return while the page before is still there, or while the browser's own first
        page replaces what was asked for (seen with Chromium 150 on a busy machine).
        """
        address = path if "://" in path else self.root + path
        for _ in range(OPEN_TRIES):
            self.driver.execute_script("window.isLeft = true")
            self.driver.get(address)
            with contextlib.suppress(TimeoutException):
                self.wait(lambda: self.driver.execute_script(ARRIVED), timeout_s=10)
                return
        raise AssertionError(
            f"The browser is at {self.driver.current_url}, not at {address}: {self.text()[:500]!r}"
        )

    @property
    def path(self) -> str:
        """Return where the browser is, behind the service's root."""
        return str(self.driver.current_url).removeprefix(self.root)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, css))

    def text(self, css: str = "body") -> str:
        """Return the text of an element as it stands in the page, seen or not."""
        found = self.driver.execute_script(
            "return document.querySelector(arguments[0])?.textContent ?? ''", css
        )
        return str(found)

    def fill(self, **fields: str) -> None:
        """Type into the fields of these names, or choose there."""
        for name, text in fields.items():
            element = self.find(f"[name={name}]")
            if element.tag_name == "select":
                Select(element).select_by_value(text)
            else:
                element.clear()
                element.send_keys(text)

    def click(self, css: str) -> None:
        """Click as soon as the element is there.

        One that the page replaces at that moment is looked up again.
        """

        def clicked() -> bool:
            element = self.find(css)
            self.driver.execute_script(
                "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element
            )
            element.click()
            return True

        self.wait(clicked)

    def wait(self, condition: Any, timeout_s: float = 60) -> Any:
        """Wait until `condition()` is true, and return what it gave."""
        waiting = WebDriverWait(
            self.driver, timeout_s, poll_frequency=0.1, ignored_exceptions=REPLACED
        )
        return waiting.until(lambda _: condition())

    def clipboard(self) -> str:
        """Return the text that a reader could paste now."""
        self.driver.execute_cdp_cmd(
            "Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]}
        )
        return str(
            self.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
        )

    def log_in(self, name: str, password: str) -> None:
        self.open("/login")
        self.fill(name=name, password=password)
        self.click("main form button")
        self.wait(lambda: "/login" not in self.path)

    def asked_addresses(self) -> set[str]:
        """Return every address that the browser asked for since the last call, in all pages."""
        entries = self.driver.get_log("performance")
        return network_addresses(json.loads(entry["message"])["message"] for entry in entries)

    def complaints(self) -> list[str]:
        """Return what the console has reported since the last call, CSP violations included."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]


@contextlib.contextmanager
def browser(
    root: str, profile: Path, *, width: int = 1200, height: int = 900, dark: bool = False
) -> Iterator[Browser]:
    """Run a fresh browser whose profile and downloads are below `profile`."""
    chromium, driver_path = programs()
    options = Options()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    if dark:
        options.add_argument("--force-dark-mode")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.add_experimental_option(
        "prefs",
        {
            "download.default_directory": str(profile / "downloads"),
            "credentials_enable_service": False,
        },
    )
    driver = webdriver.Chrome(options=options, service=Driver(executable_path=driver_path))
    driver.set_page_load_timeout(60)
    try:
        yield Browser(driver, root)
    finally:
        driver.quit()
