"""Write moments as clients of the API know them: in UTC, to the millisecond."""

from __future__ import annotations

import datetime


def moment(value: datetime.datetime) -> str:
    """Return a moment, which is in UTC, as text."""
    return value.isoformat(timespec="milliseconds")[:-6] + "Z"


def moment_if(value: datetime.datetime | None) -> str | None:
    """Return a moment as text, or None where there was none yet."""
    return None if value is None else moment(value)


def moment_of(seconds: float) -> str:
    """Return the moment so many seconds after 1970 as text."""
    return moment(datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc))
