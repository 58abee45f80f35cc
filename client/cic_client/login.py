"""Keep a log-in in a file that only its user can read, or take one from the environment."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cic_client.client import DEFAULT_ROOT, Client
from cic_client.errors import BadInput

MAX_FILE_BYTES = 64 * 1024


class KeptLogin(BaseModel):
    """Where a service is, and the token that it knows its user by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    token: str


def path_of(environ: Mapping[str, str]) -> Path:
    """Return where the log-in is kept."""
    config = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "cic" / "login.json"


def keep(login: KeptLogin, path: Path) -> None:
    """Write a log-in in one step, readable by its user alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(login.model_dump(), file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def kept(path: Path) -> KeptLogin | None:
    """Return the log-in that is kept, if there is one. Raises `BadInput` for a file that others read."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise BadInput(
                    f"Others can read {path}: run chmod 600 on it, and change the token."
                )
            return KeptLogin.model_validate_json(file.read(MAX_FILE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise BadInput(f"{path} cannot be read: run `cic login` again.") from None


def client_from(environ: Mapping[str, str]) -> Client:
    """Return a client with the log-in of the environment, or else the one that is kept."""
    if "CIC_URL" in environ:
        login: dict[str, Any] = {
            "user": environ.get("CIC_USER"),
            "password": environ.get("CIC_PASSWORD", ""),
        }
        return client(
            environ["CIC_URL"],
            environ,
            **({"token": environ["CIC_TOKEN"]} if environ.get("CIC_TOKEN") else login),
        )
    stored = kept(path_of(environ))
    if stored is None:
        raise BadInput(
            "No service is known: run `cic login https://host`, or set CIC_URL and CIC_TOKEN."
        )
    return client(stored.url, environ, token=stored.token)


def client(url: str, environ: Mapping[str, str], **login: Any) -> Client:
    """Return a client with the settings of the environment."""
    return Client(
        url,
        root=environ.get("CIC_ROOT", DEFAULT_ROOT),
        verify_tls=environ.get("CIC_INSECURE") != "1",
        **login,
    )
