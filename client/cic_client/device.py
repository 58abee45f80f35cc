"""Log in at an OpenID provider with the device flow (RFC 8628): in a browser of any machine."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

from cic_client.errors import ClientError, UnexpectedAnswer, Unreachable
from cic_client.models import DeviceLogIn
from cic_client.transport import Login

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
MAX_ANSWER_BYTES = 256 * 1024
TIMEOUT_S = 20.0
INTERVAL_S, SLOWER_S = 5.0, 5.0
"""How long to wait between two questions where the provider does not say, and when it says slower."""
MAX_INTERVAL_S, MAX_WAIT_S = 60.0, 1800.0
TRIES = 5
"""How many questions in a row may go without an answer."""
_BLOCK_BYTES = 16 * 1024
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the user is to do: open an address, and type a code there unless the other has it."""

    address: str
    code: str
    whole_address: str | None


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What the provider gives in the end."""

    id_token: str = dataclasses.field(repr=False)
    access_token: str | None = dataclasses.field(repr=False)


class NotLoggedIn(ClientError):
    """The user refused, or took too long."""


def log_in(
    where: DeviceLogIn,
    tell: Callable[[Prompt], None],
    *,
    verify_tls: bool = True,
    pause: Callable[[float], None] = time.sleep,
) -> Tokens:
    """Let a user log in, whom `tell` shows what to do, and return the provider's tokens.

    Raises `NotLoggedIn`, `Unreachable` and `UnexpectedAnswer`.
    """
    with requests.Session() as session:
        # None leaves the choice of authorities to the environment, as for every other call
        ask = functools.partial(session.post, verify=None if verify_tls else False)
        begun = _asked(
            ask,
            where.device_authorization_endpoint,
            {"client_id": where.client_id, "scope": " ".join(where.scopes)},
        )
        form = {
            "grant_type": GRANT,
            "client_id": where.client_id,
            "device_code": _text(begun, "device_code"),
        }
        tell(_prompt(begun))
        answer = _waited_for(lambda: _asked(ask, where.token_endpoint, form), begun, pause)
    access_token = answer.get("access_token")
    return Tokens(
        id_token=_text(answer, "id_token"),
        access_token=access_token if isinstance(access_token, str) else None,
    )


def _waited_for(
    ask: Callable[[], dict[str, Any]], begun: Mapping[str, Any], pause: Callable[[float], None]
) -> dict[str, Any]:
    """Ask until the user has logged in, as often as the provider allows."""
    interval_s = min(_seconds(begun, "interval", INTERVAL_S), MAX_INTERVAL_S)
    left_s = min(_seconds(begun, "expires_in", MAX_WAIT_S), MAX_WAIT_S)
    failures = 0
    while left_s > 0:
        pause(interval_s)
        left_s -= interval_s
        try:
            answer, failures = ask(), 0
        except Unreachable:
            failures += 1
            if failures >= TRIES:
                raise
            interval_s = min(2 * interval_s, MAX_INTERVAL_S)
            continue
        error = answer.get("error")
        if error is None:
            return answer
        if error == "slow_down":
            interval_s = min(interval_s + SLOWER_S, MAX_INTERVAL_S)
        elif error == "access_denied":
            raise NotLoggedIn("The log-in was refused, by you or by the provider.")
        elif error == "expired_token":
            break
        elif error != "authorization_pending":
            raise UnexpectedAnswer(f"The provider ends the log-in: {str(error)[:100]}")
    raise NotLoggedIn("Nobody logged in in time: run `cic login` again.")


def _asked(
    ask: Callable[..., requests.Response], address: str, form: Mapping[str, str]
) -> dict[str, Any]:
    """Return the JSON object that a form is answered with, an error's too."""
    _require_safe(address)
    try:
        with ask(
            address,
            data=form,
            headers={"Accept": "application/json"},
            auth=Login(),
            timeout=TIMEOUT_S,
            allow_redirects=False,
            stream=True,
        ) as answer:
            content, status = _read(answer), answer.status_code
    except requests.RequestException as error:
        raise Unreachable(f"The provider does not answer: {type(error).__name__}") from None
    if status >= 500:
        raise Unreachable(f"The provider answers {status}.")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not (status == 200 or "error" in fields):
        raise UnexpectedAnswer("The provider answers otherwise than one with a device flow does.")
    return fields


def _read(answer: requests.Response) -> bytes:
    content, end = bytearray(), time.monotonic() + TIMEOUT_S
    for block in answer.iter_content(_BLOCK_BYTES):
        content += block
        if len(content) > MAX_ANSWER_BYTES:
            raise UnexpectedAnswer("An answer of the provider is too large.")
        if time.monotonic() > end:
            raise Unreachable("An answer of the provider takes too long.")
    return bytes(content)


def _prompt(begun: Mapping[str, Any]) -> Prompt:
    if "error" in begun:
        raise UnexpectedAnswer(f"The provider begins no log-in: {str(begun['error'])[:100]}")
    whole = begun.get("verification_uri_complete")
    address = _text(begun, "verification_uri")
    for one in (address, whole):
        if one is not None:
            _require_safe(one)
    return Prompt(address=address, code=_text(begun, "user_code"), whole_address=whole)


def _require_safe(address: Any) -> None:
    """Raise `UnexpectedAnswer` for an address over which others could read the log-in."""
    try:
        parts = urlsplit(address)
        is_safe = parts.scheme == "https" or (
            parts.scheme == "http" and parts.hostname in _LOOPBACK
        )
    except (ValueError, TypeError, AttributeError):
        is_safe = False
    if not is_safe:
        raise UnexpectedAnswer(f"The provider is not at an https:// address: {str(address)[:200]}")


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ANSWER_BYTES:
        raise UnexpectedAnswer(f"The provider gives no {name}.")
    return value


def _seconds(fields: Mapping[str, Any], name: str, usual_s: float) -> float:
    value = fields.get(name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and value > 0 else usual_s  # type: ignore[arg-type,operator]
