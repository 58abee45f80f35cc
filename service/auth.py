"""Authenticate requests.

Basic takes user and password or a token as the user name, Bearer a token.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import logging
import secrets
import time
from typing import Any

from flask import Response, current_app, g, request
from flask_httpauth import HTTPBasicAuth, HTTPTokenAuth, MultiAuth
from sqlalchemy.engine import Engine

from service.addresses import network_of
from service.bottleneck import Bottleneck
from service.db import accounts
from service.db.database import now
from service.problems import problem

REALM = "container images"
REMEMBER_S = 60.0
MAX_REMEMBERED = 10_000
CONCURRENT_HASHES = 2
"""Each takes a core for a while, and 32 MB."""
WAITING_HASHES = 30
"""How many threads may wait for their turn at that; the others are asked to come back."""
TOKEN_USE_EVERY = datetime.timedelta(minutes=10)

FAILURE_WINDOW_S = 300.0
MAX_FAILURES = 20
"""Of one user from one address in that time."""
MAX_FAILURES_OF_ADDRESS = 200
MAX_FAILURES_OF_USER = 200
"""Of one user from everywhere. Beyond that, each address has one attempt in that time: who tries
passwords from many addresses gets nowhere, and the user, who fails from none, still gets in.
"""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A user who is logged in, and what the credentials permit."""

    id: int
    name: str
    is_admin: bool
    scopes: frozenset[str]
    token_id: int | None = None
    """The token that came with the call, if one did."""


class Authenticator:
    """Finds the user of credentials. One for each application; safe among threads."""

    def __init__(self, engine: Engine, *, takes_passwords: bool = True) -> None:
        self._engine = engine
        self.takes_passwords = takes_passwords
        """Without, tokens alone log in; users come through an OpenID provider."""
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, float] = {}
        self._hashing = Bottleneck(
            CONCURRENT_HASHES, waiting=WAITING_HASHES, message="Many people log in at the moment."
        )
        self._decoy_hash = accounts.hash_password(secrets.token_hex())

    def by_credentials(self, name: str, password: str, address: str) -> Principal | None:
        """Return the user of this name and password, or of the token in place of the name, or None.

        Raises `TooManyFailures`.

        Takes as long for an unknown name as for a wrong password.
        """
        if name.startswith(accounts.TOKEN_PREFIX):
            return self.by_token(name, address)
        if not self.takes_passwords:
            return None
        return self._let_in(accounts.by_name(self._engine, name[:200]), name, password, address)

    def with_build(
        self, name: str, password: str, address: str, build_id: str
    ) -> tuple[Principal | None, Any | None]:
        """Return the user as `by_credentials` does, and the user's build of this id."""
        if name.startswith(accounts.TOKEN_PREFIX):
            return self.by_token(name, address), None
        if not self.takes_passwords:
            return None, None
        row, build = accounts.by_name_with_build(self._engine, name[:200], build_id)
        principal = self._let_in(row, name, password, address)
        return principal, build if principal is not None else None

    def _let_in(self, row: Any | None, name: str, password: str, address: str) -> Principal | None:
        key = self._cache_key(row, password)
        is_remembered = row is not None and self._remembered.get(key, 0.0) >= time.monotonic()
        if not is_remembered and not self._is_right(row, name, password, address, key):
            return None
        assert row is not None
        return _principal(row, accounts.SCOPES) if row.is_active and row.is_confirmed else None

    def by_token(self, token: str, address: str) -> Principal | None:
        """Return the user of a token, or None."""
        row = accounts.by_token(self._engine, token)
        if row is None:
            network = f"address {network_of(address)}"
            accounts.require_few_failures(self._engine, network, MAX_FAILURES_OF_ADDRESS)
            accounts.note_failed_login(self._engine, network, FAILURE_WINDOW_S)
            return None
        if row.last_used_at is None or now() - row.last_used_at > TOKEN_USE_EVERY:
            accounts.note_token_use(self._engine, row.token_id)
        if not (row.is_active and row.is_confirmed):
            return None
        return dataclasses.replace(_principal(row, row.scopes), token_id=row.token_id)

    def _is_right(
        self, row: Any | None, name: str, password: str, address: str, key: bytes
    ) -> bool:
        """The slow check. Of many who ask the same at once, the first pays for all."""
        network, user = f"address {network_of(address)}", f"user {name[:64].lower()}"
        user_there = f"{user} from {network_of(address)}"
        with self._hashing.passed():
            if row is not None and self._remembered.get(key, 0.0) >= time.monotonic():
                return True
            is_tried_everywhere = accounts.failed_logins(self._engine, user) >= MAX_FAILURES_OF_USER
            accounts.require_few_failures(
                self._engine, user_there, 1 if is_tried_everywhere else MAX_FAILURES
            )
            accounts.require_few_failures(self._engine, network, MAX_FAILURES_OF_ADDRESS)
            is_right = accounts.is_password(
                (row and row.password_hash) or self._decoy_hash,
                password[: accounts.MAX_PASSWORD + 1],
            )
        if row is not None and is_right:
            self._remember(key)
            return True
        for failed in (user_there, network, user):
            accounts.note_failed_login(self._engine, failed, FAILURE_WINDOW_S)
        _log.warning("a log-in as %.64r from %s failed", name, address)
        return False

    def _cache_key(self, row: Any | None, password: str) -> bytes:
        version = (row.id, row.credential_version) if row is not None else (0, 0)
        text = f"{version[0]}:{version[1]}:{password}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, hashlib.sha256)

    def _remember(self, key: bytes) -> None:
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[key] = time.monotonic() + REMEMBER_S


_basic = HTTPBasicAuth(realm=REALM)
_bearer = HTTPTokenAuth("Bearer", realm=REALM)
auth = MultiAuth(_basic, _bearer)
"""Flask-HTTPAuth's front of it: `auth.current_user()` is the `Principal`."""


def _verify_password(name: str, password: str) -> Principal | None:
    if not name:
        return None
    asked = request._get_current_object()  # type: ignore[attr-defined]
    build_id = (asked.view_args or {}).get("build_id")
    if build_id is None:
        return authenticator().by_credentials(name, password or "", asked.remote_addr or "")
    principal, g.cic_build = authenticator().with_build(
        name, password or "", asked.remote_addr or "", build_id
    )
    return principal


def _verify_token(token: str) -> Principal | None:
    return authenticator().by_token(token, request.remote_addr or "") if token else None


def _refuse(_status: int) -> Response:
    takes_passwords = authenticator().takes_passwords
    answer = problem(
        401,
        "UNAUTHORIZED",
        "User and password, or a token, are needed, and these are not right."
        if takes_passwords
        else "A token is needed, and this is none, or one that has ended.",
        hint="Send them with HTTP Basic, or the token with Bearer."
        if takes_passwords
        else "Send it with Bearer. `cic login` gets one, and so does your account's page.",
    )
    for scheme in ("Basic", "Bearer"):
        answer.headers.add("WWW-Authenticate", f'{scheme} realm="{REALM}"')
    return answer


_basic.verify_password(_verify_password)
_bearer.verify_token(_verify_token)
_basic.error_handler(_refuse)
_bearer.error_handler(_refuse)


def authenticator() -> Authenticator:
    """Return the present application's authenticator."""
    present: Authenticator = current_app.extensions["cic"].authenticator
    return present


def _principal(row: Any, scopes: Any) -> Principal:
    return Principal(
        id=row.id,
        name=row.name,
        is_admin=row.is_admin and accounts.ADMIN in scopes,
        scopes=frozenset(scopes),
    )
