"""Make and read the links with which users confirm their mail addresses. Pure."""

from __future__ import annotations

from itsdangerous import BadData, URLSafeTimedSerializer

from config.settings import ServiceSettings

LIFE_S = 3 * 86400
_PURPOSE = "cic: a mail address"


def token_for(user_id: int, address: str, settings: ServiceSettings) -> str:
    """Return what stands in the link to an address: nobody can make one without the secret key."""
    return str(_serializer(settings).dumps([user_id, address]))


def address_in(token: str, user_id: int, settings: ServiceSettings) -> str | None:
    """Return the address of a user's link; None for one that is forged, old or another user's."""
    try:
        whose, address = _serializer(settings).loads(token, max_age=LIFE_S)
    except (BadData, ValueError, TypeError):
        return None
    return str(address) if whose == user_id else None


def _serializer(settings: ServiceSettings) -> URLSafeTimedSerializer:
    keys = (*reversed(settings.old_secret_keys), settings.secret_key)  # the last one signs
    return URLSafeTimedSerializer([key.get_secret_value() for key in keys], salt=_PURPOSE)
