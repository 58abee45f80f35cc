"""Send one notice to one webhook: signed, to an address that was checked, bounded in time and size."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime
import secrets
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
from standardwebhooks import Webhook

from service.notices.destinations import (
    Policy,
    Unresolved,
    checked_addresses,
    require_url,
    target_of,
)
from service.version import VERSION

CONNECT_S = 5.0
DEADLINE_S = 15.0
"""What one try may take in all, however slowly its receiver answers."""
LAST_WORDS_S = 1.0
MAX_ANSWER_BYTES = 4096
"""How much of an answer is read; nothing of it is kept."""
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """A notice as a webhook gets it. `id` is the same at each try."""

    id: str
    body: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """How a receiver answered: its status, and the pause that it asks for."""

    status: int
    retry_after_s: float = 0.0

    @property
    def is_taken(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no more of them."""
        return self.status == 410


class NoAnswer(Exception):
    """A receiver did not answer; the message says why, in words for its user."""


def new_secret() -> str:
    """Return a secret that signs the notices of one webhook."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii")


def signed_headers(message: Message, secret: str, at: datetime.datetime) -> dict[str, str]:
    """Return the headers of a try at this moment, after Standard Webhooks."""
    return {
        "webhook-id": message.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(message.id, at, message.body),
        "content-type": "application/json",
        "user-agent": f"cic/{VERSION}",
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caller:
    """Calls webhooks as one site allows it."""

    policy: Policy
    proxy: str | None = None
    """Looks names up once more, connects, and has to keep strangers out of what is inside."""
    ca_bundle: Path | None = None

    def post(self, url: str, message: Message, headers: Mapping[str, str]) -> Answer:
        """Send a message and return the answer's status.

        Raises `NotAllowed`, `Unresolved`, `InvalidRequest` (for an address that is allowed no more)
        and `NoAnswer`.
        """
        require_url(url, self.policy)
        host, port = target_of(url)
        addresses: Sequence[str | None] = (None,)
        try:
            checked = checked_addresses(host, port, self.policy, timeout_s=CONNECT_S)
            addresses = checked if self.proxy is None else addresses
        except Unresolved:
            if self.proxy is None:
                raise
        try:
            calling = self._call(url, message, headers, addresses)
            return asyncio.run(asyncio.wait_for(calling, DEADLINE_S))
        except asyncio.TimeoutError:
            raise NoAnswer(f"it did not answer within {DEADLINE_S:.0f} s") from None
        except httpx.HTTPError as error:
            raise NoAnswer(_words_for(error)) from None

    async def _call(
        self,
        url: str,
        message: Message,
        headers: Mapping[str, str],
        addresses: Sequence[str | None],
    ) -> Answer:
        """Try the addresses in their order until one of them takes the connection."""
        async with httpx.AsyncClient(
            verify=_trusting(self.ca_bundle),
            proxy=self.proxy,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(DEADLINE_S, connect=CONNECT_S),
        ) as client:
            for address in addresses[:-1]:
                try:
                    return await _answer(client, url, message, headers, address)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    continue
            return await _answer(client, url, message, headers, addresses[-1])


async def _answer(
    client: httpx.AsyncClient,
    url: str,
    message: Message,
    headers: Mapping[str, str],
    address: str | None,
) -> Answer:
    """Send to `address`, with the name in `Host` and TLS verified for it."""
    parts = urlsplit(url)
    extensions = {}
    if address is not None:
        extensions["sni_hostname"] = parts.hostname
        literal = f"[{address}]" if ":" in address else address
        port = f":{parts.port}" if parts.port else ""
        url = urlunsplit(parts._replace(netloc=f"{literal}{port}"))
    request = client.build_request(
        "POST",
        url,
        content=message.body,
        headers={**headers, "host": parts.netloc, "accept-encoding": "identity"},
        extensions=extensions,
    )
    answer = await client.send(request, stream=True)
    await _read_politely(answer)
    return Answer(status=answer.status_code, retry_after_s=_asked_s(answer.headers))


async def _read_politely(answer: httpx.Response) -> None:
    """Let a receiver finish its answer, if it is short: the status has come, and alone counts."""
    try:
        await asyncio.wait_for(_drop(answer), LAST_WORDS_S)
    except (asyncio.TimeoutError, httpx.HTTPError):
        pass
    finally:
        await answer.aclose()


async def _drop(answer: httpx.Response) -> None:
    read = 0
    async for block in answer.aiter_raw():
        read += len(block)
        if read >= MAX_ANSWER_BYTES:
            return


def _asked_s(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def _trusting(ca_bundle: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_bundle is not None:
        context.load_verify_locations(ca_bundle)
    return context


def _words_for(error: httpx.HTTPError) -> str:
    """What went wrong, without anything that the other side chose to say."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its certificate is not valid for this name"
    words = {
        httpx.ConnectTimeout: "it took no connection in time",
        httpx.ConnectError: "it takes no connection",
        httpx.TimeoutException: "it did not answer in time",
        httpx.ProxyError: "the site's proxy refuses it",
        httpx.RemoteProtocolError: "it does not speak HTTP",
    }
    return next((text for kind, text in words.items() if isinstance(error, kind)), "it broke off")
