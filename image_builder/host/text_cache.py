"""Keeps JSON texts that take time to make, so that the same inputs need not make them again."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from image_builder.host import files


class TextCache:
    """Keeps up to `most` texts in a folder, by key; one that is lost is made again.

    Their files end with `suffix`, so that caches may share a folder.
    """

    def __init__(self, folder: Path, suffix: str, *, most: int) -> None:
        self._folder, self._suffix, self._most = folder, suffix, most

    def get(self, key: str) -> str | None:
        """Return a text, or None; it counts as used now."""
        path = self._path(key)
        try:
            text = path.read_text("utf-8")
            json.loads(text)
            os.utime(path)
        except (OSError, ValueError, RecursionError):
            return None
        return text

    def keep(self, key: str, text: str) -> None:
        """Store a text in one step, and remove those over the limit, oldest use first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(self._path(key), text, mode=0o600)
        kept = self._folder.glob(f"*{self._suffix}")
        for path in sorted(kept, key=_used_at, reverse=True)[self._most :]:
            path.unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{self._suffix}"


def _used_at(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
