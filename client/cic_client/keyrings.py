"""Keep tokens in the user's keyring, where there is one and the package `keyring` is installed.

A keyring that fails is none: what it says is the desktop's, and the token is kept in a file then.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

SERVICE = "cic"
"""What the entries are called in the keyring; each has the address as its user name."""


def keep(url: str, token: str) -> str | None:
    """Keep a token, and return the keyring's name, or None if none gives it back."""
    ring = _keyring()
    if ring is None:
        return None
    try:
        ring.set_password(SERVICE, url, token)
        return str(ring.name) if ring.get_password(SERVICE, url) == token else None
    except Exception:  # a back end raises what its desktop does
        return None


def kept(url: str) -> str | None:
    """Return the token that is kept for an address, or None."""
    ring = _keyring()
    try:
        return ring.get_password(SERVICE, url) if ring is not None else None
    except Exception:  # as above
        return None


def forget(url: str) -> None:
    """Remove the token for an address, if there is one."""
    ring = _keyring()
    if ring is not None:
        with contextlib.suppress(Exception):  # as above; most often, there is none
            ring.delete_password(SERVICE, url)


def _keyring() -> KeyringBackend | None:
    try:
        import keyring  # optional, and slow: it looks for all desktops' back ends
    except ImportError:
        return None
    try:
        return keyring.get_keyring()
    except Exception:  # a configuration of it names what is not there
        return None
