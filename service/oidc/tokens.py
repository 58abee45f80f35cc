"""Verify ID tokens. Pure: keys, text and time go in, and claims come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from service.oidc.errors import LogInRefused

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
    | {"Ed25519"}
)
"""Signatures with a key that the provider alone has: a secret that clients know signs nothing."""
MAX_TOKEN_CHARACTERS = 64 * 1024
MAX_KEYS = 100
MAX_SUBJECT = 255
_BROKEN = (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


class UnknownKey(LogInRefused):
    """The token is signed with a key that is not among those that are known."""

    def __init__(self) -> None:
        super().__init__("its key is unknown")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """What an ID token must say. `max_age_s` is how long ago it may have been issued."""

    issuer: str
    client_id: str
    leeway_s: float
    nonce: str | None = None
    access_token: str | None = None
    max_age_s: float | None = None


def key_set(jwks: Any) -> KeySet:
    """Return the keys of a JWK set that may verify a signature. Raises `ValueError`."""
    if not isinstance(jwks, Mapping) or not isinstance(jwks.get("keys"), list):
        raise ValueError("no JWK set")
    keys = [one for one in jwks["keys"][:MAX_KEYS] if _may_verify(one)]
    imported = []
    for one in keys:
        try:
            imported += KeySet.import_key_set({"keys": [one]}).keys
        except _BROKEN:
            continue  # of a kind that is not known here
    return KeySet(imported)


def verified(
    token: str, keys: KeySet, allowed: Sequence[str], expected: Expected, now_s: float
) -> dict[str, Any]:
    """Return the claims of an ID token that is what was expected.

    `allowed` are the provider's algorithms. Raises `LogInRefused`, and `UnknownKey` when newer keys
    may help.
    """
    if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
        raise LogInRefused("its ID token is too large, or no text")
    registry = JWSRegistry(algorithms=sorted(ALGORITHMS & set(allowed)), strict_check_header=False)
    try:
        read = jwt.decode(token, keys, registry=registry)
    except InvalidKeyIdError:
        raise UnknownKey from None
    except _BROKEN:
        raise LogInRefused("the signature of its ID token is not the provider's") from None
    try:
        claims = CodeIDToken(
            read.claims,
            read.header,
            {
                "iss": {"essential": True, "value": expected.issuer},
                "aud": {"essential": True, "value": expected.client_id},
            },
            {
                "nonce": expected.nonce,
                "client_id": expected.client_id,
                "access_token": expected.access_token,
            },
        )
        claims.validate(now=int(now_s), leeway=int(expected.leeway_s))
        _require_plain(claims, expected, now_s)
    except LogInRefused:
        raise
    except ExpiredTokenError:
        raise LogInRefused("its ID token has expired, or the clocks differ") from None
    except _BROKEN as error:
        raise LogInRefused(_claim(error)) from None
    return dict(claims)


def _may_verify(key: Any) -> bool:
    """Return whether a JWK is a public one for signatures."""
    return isinstance(key, Mapping) and key.get("kty") != "oct" and key.get("use", "sig") == "sig"


def _require_plain(claims: Mapping[str, Any], expected: Expected, now_s: float) -> None:
    """Raise `LogInRefused` for what the library lets pass."""
    if claims["iss"] != expected.issuer:
        raise LogInRefused("its ID token is another issuer's")
    audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    if expected.client_id not in audience:
        raise LogInRefused("its ID token is for another client")
    if not isinstance(claims["sub"], str) or not 1 <= len(claims["sub"]) <= MAX_SUBJECT:
        raise LogInRefused("its ID token names no subject")
    for name in ("exp", "iat", "nbf"):
        if name in claims and (
            isinstance(claims[name], bool) or not isinstance(claims[name], (int, float))
        ):
            raise LogInRefused("its ID token has a time that is none")
    if (
        claims["iat"] > now_s + expected.leeway_s
        or claims.get("nbf", 0) > now_s + expected.leeway_s
    ):
        raise LogInRefused("its ID token is of the future, or the clocks differ")
    if claims["exp"] <= now_s - expected.leeway_s:
        raise LogInRefused("its ID token has expired, or the clocks differ")
    max_age_s = expected.max_age_s
    if max_age_s is not None and claims["iat"] < now_s - max_age_s - expected.leeway_s:
        raise LogInRefused("its ID token is not fresh")


_CLAIMS = {
    "iss": "its ID token is another issuer's",
    "aud": "its ID token is for another client",
    "azp": "its ID token is for another client",
    "nonce": "its ID token is of another log-in",
    "at_hash": "its access token is another's",
    "iat": "its ID token is of the future, or the clocks differ",
    "nbf": "its ID token is of the future, or the clocks differ",
}


def _claim(error: Exception) -> str:
    name = error.claim if isinstance(error, InvalidClaimError) else ""
    return _CLAIMS.get(str(name), "its ID token lacks what every ID token has")
