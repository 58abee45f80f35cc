"""Remember the names that a shell completes: machines, images and builds, for each log-in.

What is remembered is readable by its user alone, bounded, and no more than names: what a server sends
as one and has another shape is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MACHINES, IMAGES, BUILDS = "machines", "images", "builds"
MAX_NAMES = 2000
MAX_FILE_BYTES = 1024**2
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")


def remembered(path: Path, kind: str) -> tuple[list[str], float]:
    """Return the names of a kind, and the age in seconds of what is known of them."""
    entry = _read(path).get(kind)
    if not isinstance(entry, dict) or not isinstance(entry.get("at"), (int, float)):
        return [], float("inf")
    names = entry.get("names")
    return _shaped(names if isinstance(names, list) else []), abs(time.time() - entry["at"])


def remember(path: Path, kind: str, names: Iterable[str], *, age_s: float = 0) -> None:
    """Keep the names of a kind, as old as that. Where that is not possible, nothing is kept."""
    entries = _read(path) | {kind: {"at": time.time() - age_s, "names": _shaped(names)}}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # of mode 0600
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(entries, file)
        Path(temporary).replace(path)


def _shaped(names: Iterable[Any]) -> list[str]:
    return [one for one in names if isinstance(one, str) and _NAME.fullmatch(one)][:MAX_NAMES]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            entries = json.loads(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}
