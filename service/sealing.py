"""Encrypt what users entrust to the service, with keys that come from its secret key."""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from config.settings import ServiceSettings
from image_builder.errors import ServiceError

_PURPOSE = b"cic: credentials of users"


def seal(text: SecretStr, settings: ServiceSettings) -> str:
    """Return a text as it is kept: nobody reads it without the service's secret key."""
    return _fernet(settings).encrypt(text.get_secret_value().encode()).decode("ascii")


def unseal(sealed: str, settings: ServiceSettings) -> SecretStr:
    """Return a text that was sealed with the present secret key or an old one.

    Raises `ServiceError` for one that none of them opens.
    """
    try:
        return SecretStr(_fernet(settings).decrypt(sealed.encode()).decode())
    except InvalidToken:
        raise ServiceError(
            "Your credential cannot be read any more: the service has another secret key.",
            hint="Keep it in your account once more.",
        ) from None


def _fernet(settings: ServiceSettings) -> MultiFernet:
    keys = (settings.secret_key, *settings.old_secret_keys)
    return MultiFernet([Fernet(_key(key.get_secret_value())) for key in keys])


def _key(secret: str) -> bytes:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret.encode())
    return base64.urlsafe_b64encode(derived)
