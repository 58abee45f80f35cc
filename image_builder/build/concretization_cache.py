"""What Spack decided for the same inputs before: its `spack.lock`, so that it need not decide
again.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from image_builder.host import files

MAX_LOCKS = 2000


class ConcretizationCache:
    """The locks of earlier builds in a folder, by key. What is lost is concretized again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> str | None:
        """The text of the lock, or None. It counts as used now."""
        path = self._path(key)
        try:
            text = path.read_text("utf-8")
            json.loads(text)
            os.utime(path)
        except (OSError, ValueError):
            return None
        return text

    def keep(self, key: str, text: str) -> None:
        """Remember a lock, in one step. The ones that were not used for longest go when there are
        too many.
        """
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
