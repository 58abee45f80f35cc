"""Say where the command keeps its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

MAX_LOGIN_BYTES = 64 * 1024


def login_file(environ: Mapping[str, str]) -> Path:
    """Return where the log-in is kept."""
    config = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "cic" / "login.json"


def names_file(environ: Mapping[str, str]) -> Path:
    """Return where names are remembered for the log-in that the environment or the file is."""
    digest = hashlib.sha256()
    for name in ("CIC_URL", "CIC_ROOT", "CIC_USER", "CIC_TOKEN"):
        digest.update(f"{environ.get(name, '')}\n".encode())
    if "CIC_URL" not in environ:
        digest.update(_start_of(login_file(environ)))
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "cic" / f"names-{digest.hexdigest()[:16]}.json"


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_LOGIN_BYTES)
    except OSError:
        return b""
