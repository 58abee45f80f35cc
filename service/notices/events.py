"""Define what users are told of: the events, and what a notice of each says. Pure."""

from __future__ import annotations

import datetime
import enum
import json
from collections.abc import Mapping
from typing import Any

from service.times import moment, moment_if


class Event(str, enum.Enum):
    """What happens to a build, as webhooks name it, and two that users cause themselves."""

    FINISHED = "build.finished"
    FAILED = "build.failed"
    NEEDS_ATTENTION = "build.needs_attention"
    TEST = "test"
    CONFIRM = "confirm"


OF_BUILDS = (Event.FINISHED, Event.FAILED, Event.NEEDS_ATTENTION)
"""The events that a user may choose."""


def facts_of(build: Any) -> dict[str, Any]:
    """Return what a notice says of a build: names, state and times, and no text of a log."""
    return {
        "id": build.id,
        "image_id": build.image_id,
        "filename": build.filename,
        "status": build.status.value,
        "error_code": build.error_code,
        "sha256": build.sha256,
        "created_at": moment(build.created_at),
        "started_at": moment_if(build.started_at),
        "ended_at": moment_if(build.ended_at),
    }


def body_of(
    event: Event, at: datetime.datetime, facts: Mapping[str, Any], public_url: str | None
) -> str:
    """Return the JSON text that a webhook gets: the same at each try."""
    data = dict(facts)
    if "id" in data:
        data["url"] = page_of(data, public_url)
    return json.dumps(
        {"type": event.value, "timestamp": moment(at), "data": data}, separators=(",", ":")
    )


def page_of(facts: Mapping[str, Any], public_url: str | None) -> str | None:
    """Return the address of a build's page; None where the service does not know its own."""
    return None if public_url is None else f"{public_url}/builds/{facts['id']}"
