"""Make a server's texts safe to show, and numbers and times readable."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return the text without colours and whatever else would steer a terminal."""
    return _STEERING.sub("", _SEQUENCES.sub("", text.replace("\r\n", "\n")))


def json_text(value: Any) -> str:
    """Return a value as JSON in ASCII, which steers no terminal."""
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")


def size_text(size_bytes: int | None) -> str:
    """Return a size such as `1.5 GB`."""
    if size_bytes is None:
        return ""
    size, units = float(size_bytes), ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def time_of(text: str | None) -> datetime.datetime | None:
    """Return a time of the service, or None if there is none that can be read."""
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
    except ValueError:
        return None


def local_time_text(text: str | None) -> str:
    """Return a time of the service by the clock of this machine, to the minute."""
    moment = time_of(text)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else ""


def duration_text(seconds: float) -> str:
    """Return a duration such as `1:02:03`."""
    return str(datetime.timedelta(seconds=max(0, int(seconds))))
