"""Make one HTTP call of the service: bounded in size and time, and tried again where that is safe."""

from __future__ import annotations

import base64
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import IO, TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase

from cic_client import lazy
from cic_client.errors import BadInput, Refused, UnexpectedAnswer, Unreachable

if TYPE_CHECKING:
    from cic_client import models
else:
    models = lazy.module("cic_client.models")

MAX_ANSWER_BYTES = 64 * 1024**2
MAX_ANSWER_S = 600.0
CONNECT_S, READ_S = 20.0, 120.0
TRIES = 4
MAX_PAUSE_S = 60.0
"""A service that asks for a longer pause is not asked again by the same call."""
_BLOCK_BYTES = 64 * 1024
AWAY = (429, 502, 503, 504)
"""What a service answers, or the gateway before it, that may do so no more in a while."""
_REPEATABLE = ("GET", "HEAD", "DELETE")


class Readable(Protocol):
    """What an answer can be read as."""

    @classmethod
    def of(cls: type[Model], content: bytes) -> Model:
        """Return what was answered. Raises `UnexpectedAnswer`."""


Model = TypeVar("Model", bound=Readable)


@dataclasses.dataclass(frozen=True)
class Login(AuthBase):
    """A log-in: a token, or a user and a password. The default is none.

    requests would otherwise add what a ~/.netrc holds, which is not meant for this service.
    """

    token: str | None = dataclasses.field(default=None, repr=False)
    user: str | None = None
    password: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        if ":" in (self.user or ""):
            raise BadInput("A user name cannot contain a colon.")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise BadInput("A token has no spaces, line breaks or letters beyond ASCII.")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token is not None:
            request.headers["Authorization"] = f"Bearer {self.token}"
        elif self.user is not None:
            pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.headers["Authorization"] = f"Basic {pair}"
        return request


@dataclasses.dataclass(frozen=True)
class Body:
    """What a call sends: bytes, or a file from its beginning."""

    content: bytes | IO[bytes]
    content_type: str = "application/json"

    def from_beginning(self) -> bytes | IO[bytes]:
        """Return the content, ready to be sent again."""
        if not isinstance(self.content, bytes):
            self.content.seek(0)
        return self.content


@dataclasses.dataclass(frozen=True)
class Whole:
    """An answer that has come in full."""

    content: bytes
    headers: Mapping[str, str]

    def parsed(self, model: type[Model]) -> Model:
        """Return the JSON object of the answer. Raises `UnexpectedAnswer`."""
        return model.of(self.content)

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


def base_url(address: str, root: str) -> str:
    """Return the address that every path is appended to. Raises `BadInput`."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        raise BadInput("The address cannot be read: write one such as https://host.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput("The address must begin with http:// or https://, and name a host.")
    if parts.username is not None or parts.password is not None:
        raise BadInput("Give the log-in apart from the address, not in it.")
    if parts.query or parts.fragment or any(c.isspace() or not c.isprintable() for c in address):
        raise BadInput("The address has no spaces, ? or #.")
    root = root.strip("/")
    base = address.rstrip("/")
    return base if not root or parts.path.rstrip("/").endswith(f"/{root}") else f"{base}/{root}"


class Transport:
    """The connection to one service."""

    def __init__(
        self,
        base: str,
        login: Login,
        *,
        verify_tls: bool = True,
        tries: int = TRIES,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._base = base
        self._tries = tries
        self._login = login
        self._verify = verify_tls
        self._pause = pause
        self._session = requests.Session()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        accept: str = "application/json",
    ) -> Whole:
        """Return the answer to a call. Raises `Refused`, `Unreachable` or `UnexpectedAnswer`."""
        with self.open(method, path, query=query, body=body, headers={"Accept": accept}) as answer:
            return Whole(_read(answer), answer.headers)

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Return an answer of status 2xx whose body is still to be read, and which must be closed.

        A redirect is followed once, without the log-in, and only for what is read.
        """
        answer = self._tried(method, f"{self._base}{path}", self._login, query, body, headers)
        if answer.is_redirect and method == "GET":
            target = urljoin(answer.url, answer.headers["Location"])
            answer.close()
            schemes = ("https",) if self._base.startswith("https:") else ("https", "http")
            if urlsplit(target).scheme not in schemes:
                raise UnexpectedAnswer(
                    "The service redirects to where this client does not follow."
                )
            answer = self._tried(method, target, Login(), None, None, headers)
        if 200 <= answer.status_code < 300:
            return answer
        with answer:
            raise _refusal(answer)

    def _tried(
        self,
        method: str,
        url: str,
        login: Login,
        query: Mapping[str, str] | None,
        body: Body | None,
        headers: Mapping[str, str] | None,
    ) -> requests.Response:
        """Try until an answer comes that is worth reading.

        A call that may have been taken is not sent twice: after a broken connection, only what
        changes nothing when it is repeated.
        """
        for number in range(self._tries):
            is_last = number == self._tries - 1
            try:
                answer = self._session.request(
                    method,
                    url,
                    params=query,
                    data=body.from_beginning() if body else None,
                    headers={
                        **(headers or {}),
                        **({"Content-Type": body.content_type} if body else {}),
                    },
                    auth=login,
                    timeout=(CONNECT_S, READ_S),
                    allow_redirects=False,
                    stream=True,
                    verify=_authorities() if self._verify else False,
                )
            except (requests.exceptions.SSLError, requests.exceptions.InvalidURL) as error:
                raise Unreachable(f"No connection to {self._base}: {error}") from None
            except requests.RequestException as error:
                if is_last or not (method in _REPEATABLE or _was_not_sent(error)):
                    raise Unreachable(f"No answer from {self._base}: {error}") from None
                self._pause(2.0**number)
                continue
            pause_s = _pause_s(answer, 2.0**number)
            if is_last or answer.status_code not in AWAY or pause_s > MAX_PAUSE_S:
                return answer
            if method not in _REPEATABLE and answer.status_code not in (429, 503):
                return answer  # what a gateway says of a call that the service may have taken
            answer.close()
            self._pause(pause_s)
        raise AssertionError("the last try returns or raises")


def _was_not_sent(error: requests.RequestException) -> bool:
    """Return whether no connection was made, so that the service cannot have taken the call."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    return "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error)


def _pause_s(answer: requests.Response, default_s: float) -> float:
    """Return how long a service wants to be left alone: it names seconds, or a time."""
    asked = answer.headers.get("Retry-After", "")[:100]
    if asked.isascii() and asked.isdigit() and len(asked) < 8:
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return default_s


def _authorities() -> str | None:
    """Return the file of certificate authorities that the environment names for all programs.

    requests itself looks at REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE first.
    """
    if any(os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")):
        return None
    return os.environ.get("SSL_CERT_FILE") or None


def _read(answer: requests.Response) -> bytes:
    content = bytearray()
    end = time.monotonic() + MAX_ANSWER_S
    try:
        for block in answer.iter_content(_BLOCK_BYTES):
            content += block
            if len(content) > MAX_ANSWER_BYTES:
                raise UnexpectedAnswer(f"The answer is larger than {MAX_ANSWER_BYTES} bytes.")
            if time.monotonic() > end:
                raise Unreachable("The answer takes too long.")
    except requests.RequestException as error:
        raise Unreachable(f"The answer does not come in full: {error}") from None
    return bytes(content)


def _refusal(answer: requests.Response) -> Exception:
    if 300 <= answer.status_code < 400:
        return UnexpectedAnswer(
            f"The service is at another address: {answer.headers.get('Location', 'none is given')}"
        )
    try:
        problem = Whole(_read(answer), answer.headers).parsed(models.Problem)
    except UnexpectedAnswer:
        problem = models.Problem(title="The service answers")
    return Refused(answer.status_code, problem)
