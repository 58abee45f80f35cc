"""Read what a provider's claims say of a user here. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from config.settings import OidcSettings
from service.db.groups import is_name

MAX_GROUPS = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claimed:
    """A user as the provider describes one. None: it says nothing of that, or is not asked."""

    subject: str
    name: str
    groups: tuple[str, ...] | None
    is_admin: bool | None


def wanted(settings: OidcSettings) -> tuple[str, ...]:
    """Return the claims that a log-in needs."""
    names = (settings.user_name_claim, settings.groups_claim)
    return tuple(name for name in names if name is not None)


def value(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim: one of this very name, or else one inside others, as `realm_access.roles`."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def read(claims: Mapping[str, Any], settings: OidcSettings) -> Claimed:
    """Return what claims say of their subject. Whoever has no groups claim is in no group."""
    name = value(claims, settings.user_name_claim)
    groups = None if settings.groups_claim is None else _groups(claims, settings.groups_claim)
    is_admin = None
    if settings.administrator_groups:
        is_admin = not set(settings.administrator_groups).isdisjoint(groups or ())
    return Claimed(
        subject=claims["sub"],
        name=name if isinstance(name, str) else "",
        groups=groups,
        is_admin=is_admin,
    )


def _groups(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    given = value(claims, name)
    listed = given if isinstance(given, list) else [given]
    names = dict.fromkeys(one for one in listed if isinstance(one, str) and is_name(one))
    return tuple(names)[:MAX_GROUPS]
