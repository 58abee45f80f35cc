"""Turn what a provider answers into a user here: the one way in for pages and for `cic login`."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Engine

from config.settings import OidcSettings
from image_builder.errors import CicError, InvalidRequest
from service.addresses import network_of
from service.auth import FAILURE_WINDOW_S, MAX_FAILURES_OF_ADDRESS
from service.db import accounts, subjects
from service.db.database import now
from service.errors import Forbidden, NameTaken
from service.oidc import claims
from service.oidc.claims import Claimed
from service.oidc.errors import AccountClosed, LogInRefused, ProviderSilent
from service.oidc.provider import Attempt, Provider
from service.oidc.tokens import Expected

ATTEMPT_LIFE_S = 600.0
"""How long a browser may be at the provider, and how old an ID token of the device flow may be."""

_log = logging.getLogger(__name__)


def by_code(
    provider: Provider,
    engine: Engine,
    *,
    code: str,
    attempt: Attempt,
    redirect_uri: str,
    **more: Any,
) -> Any:
    """Return the user whom a code stands for, who may log in. Raises as `_taken_in`."""
    answer = provider.exchange(code, attempt, redirect_uri)
    id_token, access_token = _text(answer, "id_token"), answer.get("access_token")
    access_token = access_token if isinstance(access_token, str) else None
    verified = provider.verified(
        id_token,
        Expected(
            issuer=provider.settings.issuer or "",
            client_id=provider.settings.client_id or "",
            leeway_s=provider.settings.clock_leeway_s,
            nonce=attempt.nonce,
            access_token=access_token,
        ),
    )
    return _taken_in(provider, engine, verified, access_token, **more)


def by_device(
    provider: Provider, engine: Engine, *, id_token: str, access_token: str | None, **more: Any
) -> Any:
    """Return the user of the device flow's ID token, which is good for one time.

    Raises as `_taken_in`.
    """
    verified = provider.verified(
        id_token,
        Expected(
            issuer=provider.settings.issuer or "",
            client_id=provider.settings.device_client_id or "",
            leeway_s=provider.settings.clock_leeway_s,
            access_token=access_token,
            max_age_s=ATTEMPT_LIFE_S,
        ),
    )
    kept_s = ATTEMPT_LIFE_S + 2 * provider.settings.clock_leeway_s
    signed = id_token.rpartition(".")[0]  # a signature may have several spellings
    use_once(engine, f"id_token {signed}", kept_s)
    return _taken_in(provider, engine, verified, access_token, **more)


def use_once(engine: Engine, what: str, life_s: float) -> None:
    """Raise `LogInRefused` for something that has been used before."""
    if not subjects.use_once(engine, what, now() + datetime.timedelta(seconds=life_s)):
        raise LogInRefused("it was used before")


def require_patience(engine: Engine, address: str) -> None:
    """Raise `TooManyFailures` for an address from which log-ins fail again and again."""
    accounts.require_few_failures(engine, _key(address), MAX_FAILURES_OF_ADDRESS)


def note_failure(engine: Engine, error: CicError, address: str) -> None:
    """Tell the operator why a log-in failed, and count one that was refused."""
    reason = error.reason if isinstance(error, (LogInRefused, ProviderSilent)) else str(error)
    _log.warning("a log-in through OpenID Connect from %s failed: %s", address, reason)
    if isinstance(error, LogInRefused):
        accounts.note_failed_login(engine, _key(address), FAILURE_WINDOW_S)


def _taken_in(
    provider: Provider,
    engine: Engine,
    verified: Mapping[str, Any],
    access_token: str | None,
    *,
    is_confirmed: bool,
) -> Any:
    """Return the user of verified claims, with the provider's word on groups written down.

    Raises `LogInRefused`, `NameTaken`, `AccountClosed` and `ProviderSilent`.
    """
    settings = provider.settings
    known = dict(verified)
    if access_token and any(claims.value(known, name) is None for name in claims.wanted(settings)):
        more = provider.user_info(access_token)
        if more and more.get("sub") != known["sub"]:
            raise LogInRefused("its user info is another subject's")
        known = {**more, **known}
    claimed = claims.read(known, settings)
    row = _user(engine, claimed, settings, is_confirmed=is_confirmed)
    if row is None or not (row.is_active and row.is_confirmed):
        raise AccountClosed
    return row


def _user(engine: Engine, claimed: Claimed, settings: OidcSettings, *, is_confirmed: bool) -> Any:
    try:
        row, left_out = subjects.take_in(
            engine,
            issuer=settings.issuer or "",
            subject=claimed.subject,
            name=claimed.name,
            is_admin=claimed.is_admin,
            group_names=claimed.groups,
            until=now() + datetime.timedelta(seconds=settings.groups_valid_s),
            is_confirmed=is_confirmed,
        )
    except NameTaken as error:
        _log.warning(
            "the subject %.255r claims the name %s, which is another account's: "
            "`users link %s SUBJECT` makes them one",
            claimed.subject,
            error.name,
            error.name,
        )
        raise
    except InvalidRequest:
        _log.warning(
            "the subject %.255r claims the name %.64r, which no user can have: choose another "
            "oidc_cfg['user_name_claim'], or `users link NAME SUBJECT`",
            claimed.subject,
            claimed.name,
        )
        raise Forbidden(
            "Your log-in works, but the name that comes with it cannot be a user's name here.",
            hint="Ask the operator of the service.",
        ) from None
    for name in left_out:
        _log.warning(
            "the group %.200r of the provider is left out: an operator's has its name", name
        )
    return row


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise LogInRefused(f"the provider gives no {name}")
    return value


def _key(address: str) -> str:
    return f"openid from {network_of(address)}"
