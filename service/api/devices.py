"""Answer programs that log their users in with the device flow of an OpenID provider."""

from __future__ import annotations

import datetime

from image_builder.errors import CicError
from service.api.queries import DeviceTokens
from service.api.responses import DeviceLogIn, LoggedIn
from service.context import Service
from service.db import accounts, audit_trail
from service.db.database import now
from service.errors import Missing
from service.oidc import log_in
from service.oidc.provider import Provider
from service.times import moment

SCOPES = (accounts.READ, accounts.WRITE)


def where(provider: Provider | None) -> DeviceLogIn:
    """Return where a program begins. Raises `Missing` where there is no such log-in."""
    provider = _with_devices(provider)
    metadata = provider.metadata()
    if metadata.device_authorization_endpoint is None:
        raise Missing(
            "The provider of this service has no device flow.",
            hint="Make a token on the account's page.",
        )
    return {
        "issuer": metadata.issuer,
        "client_id": provider.settings.device_client_id or "",
        "device_authorization_endpoint": metadata.device_authorization_endpoint,
        "token_endpoint": metadata.token_endpoint,
        "scopes": list(provider.settings.scopes),
        "name": provider.settings.name,
    }


def exchange(service: Service, asked: DeviceTokens, address: str) -> LoggedIn:
    """Return a token of this service for what a provider gave. Raises as `log_in.by_device`."""
    provider, engine = _with_devices(service.provider), service.engine
    try:
        log_in.require_patience(engine, address)
        row = log_in.by_device(
            provider,
            engine,
            id_token=asked.id_token,
            access_token=asked.access_token,
            is_confirmed=not service.settings.service.confirm_users,
        )
    except CicError as error:
        log_in.note_failure(engine, error, address)
        raise
    expires_at = now() + datetime.timedelta(seconds=provider.settings.token_valid_s)
    token = accounts.replace_token(engine, row.id, asked.name, scopes=SCOPES, expires_at=expires_at)
    audit_trail.record_audit_event(
        engine, user=row.name, action="login", subject="openid device", address=address
    )
    return {"token": token, "user": row.name, "expires_at": moment(expires_at)}


def _with_devices(provider: Provider | None) -> Provider:
    if provider is None or not provider.settings.has_device_flow:
        raise Missing(
            "This service has no log-in for programs.", hint="Make a token on the account's page."
        )
    return provider
