"""Speak HTTP with the OpenID provider: every answer is bounded in size and time, none redirects."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from config.settings import is_safe_url
from service.oidc.errors import ProviderSilent

MAX_ANSWER_BYTES = 512 * 1024
CONNECT_S, READ_S, ANSWER_S = 5.0, 5.0, 10.0
_BLOCK_BYTES = 16 * 1024


class BoundedAdapter(HTTPAdapter):
    """Sends a request, and returns its answer once all of it has come within the bounds.

    Raises `ProviderSilent`.
    """

    def send(
        self, request: requests.PreparedRequest, *arguments: Any, **options: Any
    ) -> requests.Response:
        if not is_safe_url(request.url or ""):
            raise ProviderSilent("an address of the provider is not https")
        end = time.monotonic() + ANSWER_S
        options |= {"stream": True, "timeout": (CONNECT_S, READ_S)}
        try:
            with super().send(request, **options) as answer:
                if 300 <= answer.status_code < 400:
                    raise ProviderSilent("the provider redirects")
                return _whole(answer, _read(answer, end))
        except requests.RequestException as error:
            raise ProviderSilent(f"no connection: {type(error).__name__}") from None


def prepare(session: requests.Session, ca_bundle: Path | None) -> None:
    """Let a session speak through `BoundedAdapter` alone."""
    session.trust_env = False  # no ~/.netrc; a proxy is not for log-ins
    session.verify = str(ca_bundle) if ca_bundle is not None else True
    session.headers["Accept"] = "application/json"
    session.headers["Accept-Encoding"] = "identity"
    for scheme in ("https://", "http://"):
        session.mount(scheme, BoundedAdapter())


def _read(answer: requests.Response, end: float) -> bytes:
    content = bytearray()
    for block in answer.iter_content(_BLOCK_BYTES):
        content += block
        if len(content) > MAX_ANSWER_BYTES:
            raise ProviderSilent("an answer of the provider is too large")
        if time.monotonic() > end:
            raise ProviderSilent("an answer of the provider takes too long")
    return bytes(content)


def _whole(answer: requests.Response, content: bytes) -> requests.Response:
    whole = requests.Response()
    whole.status_code, whole.url, whole.request = answer.status_code, answer.url, answer.request
    whole.headers, whole.encoding = answer.headers, "utf-8"
    whole.raw = io.BytesIO(content)
    return whole
