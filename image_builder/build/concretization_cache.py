"""Keeps earlier builds' lockfiles, so that Spack need not concretize the same inputs again."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from image_builder.host import files

MAX_LOCKS = 2000


class ConcretizationCache:
    """Keeps lockfiles in a folder, by key; one that is lost is concretized again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> str | None:
        """Return the text of the lockfile, or None; it counts as used now."""
        path = self._path(key)
        try:
            text = path.read_text("utf-8")
            json.loads(text)
            os.utime(path)
        except (OSError, ValueError):
            return None
        return text

    def keep(self, key: str, text: str) -> None:
        """Store a lockfile in one step, and remove those over the limit, oldest use first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(self._path(key), text, mode=0o600)
        for path in sorted(self._folder.glob("*.lock"), key=_used_at, reverse=True)[MAX_LOCKS:]:
            path.unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.lock"


def _used_at(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
