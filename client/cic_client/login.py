"""Keep a log-in, or take one from the environment.

The address is kept in a file that only its user can read, and the token in the user's keyring, or
in that file where there is no keyring that keeps it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cic_client import keyrings, places
from cic_client.client import DEFAULT_ROOT, Client
from cic_client.errors import BadInput
from cic_client.transport import TRIES


@dataclasses.dataclass(frozen=True)
class KeptLogin:
    """What the file holds: where a service is, and the token unless the keyring has it."""

    url: str
    token: str | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Login:
    """Where a service is, and what it knows its user by: options of `Client`."""

    url: str
    options: Mapping[str, str | None] = dataclasses.field(repr=False)


def keep(url: str, token: str, path: Path, *, in_keyring: bool = True) -> str | None:
    """Keep a log-in, and return the name of the keyring that has the token, or None for the file."""
    forget(path)
    ring = keyrings.keep(url, token) if in_keyring else None
    _write(KeptLogin(url=url, token=None if ring else token), path)
    return ring


def forget(path: Path) -> None:
    """Remove the log-in that is kept, from the keyring as well."""
    stored = _readable(path)  # what cannot be read is removed
    if stored is not None and stored.token is None:
        keyrings.forget(stored.url)
    path.unlink(missing_ok=True)


def kept(path: Path) -> Login | None:
    """Return the log-in that is kept, or None where there is none with a token that can be read."""
    stored = _readable(path)
    token = (stored.token or keyrings.kept(stored.url)) if stored is not None else None
    return Login(stored.url, {"token": token}) if stored is not None and token else None


def login_from(environ: Mapping[str, str]) -> Login:
    """Return the log-in of the environment, or else the one that is kept. Raises `BadInput`."""
    if "CIC_URL" in environ:
        if environ.get("CIC_TOKEN"):
            return Login(environ["CIC_URL"], {"token": environ["CIC_TOKEN"]})
        user = {"user": environ.get("CIC_USER"), "password": environ.get("CIC_PASSWORD", "")}
        return Login(environ["CIC_URL"], user)
    path = places.login_file(environ)
    stored = _read(path)
    if stored is None:
        raise BadInput(
            "No service is known: run `cic login https://host`, or set CIC_URL and CIC_TOKEN."
        )
    token = stored.token or keyrings.kept(stored.url)
    if token is None:
        raise BadInput(
            f"The keyring that has the token for {stored.url} does not give it: unlock it, or run "
            "`cic login` again."
        )
    return Login(stored.url, {"token": token})


def client(login: Login, environ: Mapping[str, str], *, tries: int = TRIES) -> Client:
    """Return a client with the settings of the environment."""
    options: dict[str, Any] = {**login.options}
    return Client(
        login.url,
        root=environ.get("CIC_ROOT", DEFAULT_ROOT),
        verify_tls=environ.get("CIC_INSECURE") != "1",
        tries=tries,
        **options,
    )


def in_the_clear(url: str) -> str | None:
    """Return what to say of an address to which a log-in goes where others can read it."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None  # which the client refuses
    if parts.scheme != "http" or host == "localhost" or _is_loopback(host):
        return None
    return f"The log-in goes to {host} without encryption, for others to read: use https://."


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _write(login: KeptLogin, path: Path) -> None:
    """Write a log-in in one step, readable by its user alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({key: value for key, value in vars(login).items() if value}, file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _readable(path: Path) -> KeptLogin | None:
    try:
        return _read(path)
    except BadInput:
        return None


def _read(path: Path) -> KeptLogin | None:
    """Return what the file holds, if there is one. Raises `BadInput` for a token that others read."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise BadInput(
                    f"Others can read {path}: run chmod 600 on it, and change the token."
                )
            fields = json.loads(file.read(places.MAX_LOGIN_BYTES))
            if not all(isinstance(value, str) for value in fields.values()):
                raise TypeError
            return KeptLogin(**fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{path} cannot be read: run `cic login` again.") from None
