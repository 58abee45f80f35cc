"""A forger in the place of an OpenID provider: a small server that says whatever a test wants.

It speaks just enough of the protocol to send what the real provider of `tests/oidc` never would:
tokens with wrong signatures, times and audiences, endless answers, redirects.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

CLIENT, SECRET, DEVICE = "cic", "canary-client-secret", "cic-device"
_REGISTRY = JWSRegistry(algorithms=["RS256", "ES256"], strict_check_header=False)


class ForgingProvider:
    """What the server says: change the attributes, and the next answer is so.

    `asked` holds the path and the form of every request.
    """

    def __init__(self, address: str) -> None:
        self.issuer = address
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.keys: list[Any] = [self.key]
        self.metadata: dict[str, Any] = {}
        self.token: dict[str, Any] = {}
        self.user_info: dict[str, Any] = {}
        self.raw: dict[str, Any] = {}
        """By path: a status with a body or an iterator, in place of the usual answer."""
        self.asked: list[tuple[str, dict[str, str]]] = []

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a good ID token, changed; None leaves one out."""
        moment = int(time.time())
        good = {
            "iss": self.issuer,
            "sub": "subject-of-ada",
            "aud": CLIENT,
            "iat": moment,
            "exp": moment + 300,
            "preferred_username": "ada.lovelace",
        }
        return {name: value for name, value in (good | changes).items() if value is not None}

    def signed(
        self, claims: Mapping[str, Any], *, key: Any = None, alg: str = "RS256", **header: Any
    ) -> str:
        """An ID token as any forger may write it."""
        key = key or self.key
        return jwt.encode(
            {"alg": alg, "kid": key.kid or "one", **header}, dict(claims), key, registry=_REGISTRY
        )

    def answer(self, path: str) -> Any:
        usual: dict[str, Any] = {
            "/.well-known/openid-configuration": {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/jwks",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "device_authorization_endpoint": f"{self.issuer}/device",
                "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256", "none"],
                **self.metadata,
            },
            "/jwks": {"keys": [key.as_dict(private=False) for key in self.keys]},
            "/token": self.token,
            "/userinfo": self.user_info,
        }
        return usual.get(path)


def unsigned(claims: Mapping[str, Any]) -> str:
    """An ID token of the algorithm `none`. Libraries for tokens refuse to write one."""
    return _by_hand({"alg": "none", "kid": "one"}, claims, lambda _: b"")


def signed_with_public_key(provider: ForgingProvider, claims: Mapping[str, Any]) -> str:
    """An ID token whose shared secret is the provider's public key, which everybody has."""
    secret = provider.key.as_pem(private=False)
    return _by_hand(
        {"alg": "HS256", "kid": "one"}, claims, lambda text: hmac.digest(secret, text, "sha256")
    )


def _by_hand(
    header: Mapping[str, Any], claims: Mapping[str, Any], sign: Callable[[bytes], bytes]
) -> str:
    parts = [_encoded(json.dumps(part).encode()) for part in (header, claims)]
    return ".".join([*parts, _encoded(sign(".".join(parts).encode()))])


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@contextlib.contextmanager
def forging_provider() -> Iterator[ForgingProvider]:
    """Run a forger on a free port of the loopback interface."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            form = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode()))
            if authorization := self.headers.get("Authorization"):
                form["Authorization"] = authorization
            path = self.path.partition("?")[0]
            forger.asked.append((path, form))
            status, body, headers = forger.raw.get(path, (200, None, {}))
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            blocks = [json.dumps(forger.answer(path)).encode()] if body is None else body
            with contextlib.suppress(OSError):
                for block in blocks:
                    self.wfile.write(block)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    forger = ForgingProvider(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield forger
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def other_key(kid: str = "one") -> Any:
    """A key that the provider does not have, under any id."""
    return ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": "ES256"})
