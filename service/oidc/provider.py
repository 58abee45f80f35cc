"""Ask the OpenID provider: its metadata and keys, which are remembered, codes and claims."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from joserfc.jwk import KeySet
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from config.settings import OidcSettings, is_safe_url
from service.bottleneck import Bottleneck
from service.oidc import tokens
from service.oidc.errors import LogInRefused, ProviderSilent
from service.oidc.tokens import Expected, UnknownKey
from service.oidc.transport import prepare

REMEMBER_S = 3600.0
"""How long metadata and keys are used before they are read again."""
AGAIN_AFTER_S = 10.0
"""How long no other attempt is made to read either: who sends forged keys does not reach the
provider with each.
"""
BUSY = "Many people log in at the moment."
DISCOVERY = "/.well-known/openid-configuration"


class Metadata(BaseModel):
    """What a provider says of itself (OpenID Connect Discovery 1.0)."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    id_token_signing_alg_values_supported: list[str] = ["RS256"]
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic"]
    authorization_response_iss_parameter_supported: bool = False

    @field_validator(
        "authorization_endpoint",
        "token_endpoint",
        "jwks_uri",
        "userinfo_endpoint",
        "device_authorization_endpoint",
    )
    @classmethod
    def _is_safe(cls, value: str | None) -> str | None:
        if value is not None and not is_safe_url(value):
            raise ValueError("is not https")
        return value


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A log-in that a browser has begun: what comes back must fit these secrets."""

    state: str
    nonce: str
    verifier: str


class Provider:
    """One provider; safe among threads. Every call raises `ProviderSilent`."""

    def __init__(self, settings: OidcSettings, *, ca_bundle: Path | None = None) -> None:
        self.settings = settings
        self._ca_bundle = ca_bundle
        self._calls = Bottleneck(4, waiting=16, message=BUSY)
        self._metadata = _Remembered(self._read_metadata)
        self._keys = _Remembered(self._read_keys)

    def metadata(self) -> Metadata:
        """Return what the provider says of itself."""
        metadata: Metadata = self._metadata.value()
        return metadata

    def address_to_log_in(self, attempt: Attempt, redirect_uri: str) -> str:
        """Return where a browser is sent: PKCE's challenge hides the verifier that comes later."""
        with self._client(redirect_uri) as client:
            address, _ = client.create_authorization_url(
                self.metadata().authorization_endpoint,
                state=attempt.state,
                nonce=attempt.nonce,
                code_verifier=attempt.verifier,
            )
        return str(address)

    def exchange(self, code: str, attempt: Attempt, redirect_uri: str) -> dict[str, Any]:
        """Return the tokens that a code stands for. Raises `LogInRefused`."""
        endpoint = self.metadata().token_endpoint
        try:
            with self._calls.passed(), self._client(redirect_uri) as client:
                return dict(
                    client.fetch_token(
                        endpoint,
                        grant_type="authorization_code",
                        code=code,
                        code_verifier=attempt.verifier,
                    )
                )
        except AuthlibBaseError:
            raise LogInRefused("the provider does not take its code") from None
        except (requests.RequestException, ValueError, TypeError, KeyError, RecursionError):
            raise ProviderSilent("the answer to a code is none") from None

    def verified(self, id_token: str, expected: Expected) -> dict[str, Any]:
        """Return an ID token's claims; keys are read again for one that is not known yet.

        Raises `LogInRefused`.
        """
        allowed = self.metadata().id_token_signing_alg_values_supported
        try:
            return tokens.verified(id_token, self._keys.value(), allowed, expected, time.time())
        except UnknownKey:
            keys = self._keys.value(fresh=True)
            return tokens.verified(id_token, keys, allowed, expected, time.time())

    def user_info(self, access_token: str) -> dict[str, Any]:
        """Return the claims that the provider has beside those of the ID token."""
        endpoint = self.metadata().userinfo_endpoint
        if endpoint is None or not access_token.isascii() or not access_token.isprintable():
            return {}
        answer = self._json(endpoint, {"Authorization": f"Bearer {access_token}"})
        return answer if isinstance(answer, dict) else {}

    def _client(self, redirect_uri: str) -> OAuth2Session:
        settings = self.settings
        secret = settings.client_secret
        methods = self.metadata().token_endpoint_auth_methods_supported
        method = "client_secret_basic" if "client_secret_basic" in methods else "client_secret_post"
        client = OAuth2Session(
            settings.client_id,
            secret.get_secret_value() if secret is not None else None,
            token_endpoint_auth_method=method if secret is not None else "none",
            scope=" ".join(settings.scopes),
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
        )
        prepare(client, self._ca_bundle)
        return client

    def _read_metadata(self) -> Metadata:
        issuer = self.settings.issuer or ""
        try:
            metadata = Metadata.model_validate(self._json(issuer.rstrip("/") + DISCOVERY))
        except ValidationError as error:
            where = error.errors(include_url=False, include_input=False)[0]["loc"]
            raise ProviderSilent(f"the provider's metadata lacks {where[:1]}") from None
        if metadata.issuer != issuer:
            raise ProviderSilent("the provider calls itself otherwise than oidc_cfg['issuer'] does")
        return metadata

    def _read_keys(self) -> KeySet:
        try:
            return tokens.key_set(self._json(self.metadata().jwks_uri))
        except ValueError:
            raise ProviderSilent("the provider's keys cannot be read") from None

    def _json(self, address: str, headers: dict[str, str] | None = None) -> Any:
        with self._calls.passed(), requests.Session() as session:
            prepare(session, self._ca_bundle)
            answer = session.get(address, headers=headers)
            if answer.status_code != 200:
                raise ProviderSilent(f"the provider answers {answer.status_code}")
            try:
                return answer.json()
            except (ValueError, RecursionError):
                raise ProviderSilent("the provider's answer is no JSON") from None


class _Remembered:
    """Something that is read once, and again when it is old or a fresh one is asked for."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._turn = Bottleneck(1, waiting=16, message=BUSY)
        self._value: Any = None
        self._read_at = self._tried_at = float("-inf")

    def value(self, *, fresh: bool = False) -> Any:
        if not fresh and self._is_there():
            return self._value
        with self._turn.passed():
            is_due = fresh or not self._is_there()
            if is_due and time.monotonic() - self._tried_at > AGAIN_AFTER_S:
                self._tried_at = time.monotonic()
                self._value, self._read_at = self._read(), time.monotonic()
        if not self._is_there():
            raise ProviderSilent("it did not answer a moment ago")
        return self._value

    def _is_there(self) -> bool:
        return self._value is not None and time.monotonic() - self._read_at <= REMEMBER_S
