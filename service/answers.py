"""What the API says of builds and images: rows and records become JSON objects. Pure."""

from __future__ import annotations

import datetime
from typing import Any

from image_builder.state import BuildState
from image_builder.storage import ImageRecord

_PENDING_STAGE = "queue"


def build_answer(row: Any) -> dict[str, Any]:
    """A build's status. The first four fields are those of the first version of the API."""
    own = row.own_state
    state: BuildState = own or row.run_state
    return {
        "status": state.value,
        "message": row.message if own is not None else row.run_message,
        "image_id": row.image_id,
        "filename": row.filename,
        "id": row.id,
        "created_at": _time(row.created_at),
        "started_at": _time(row.started_at),
        "building_at": _time(row.building_at),
        "converting_at": _time(row.converting_at),
        "ended_at": _time(row.ended_at),
        "stage": None if state is BuildState.FINISHED else row.stage or _PENDING_STAGE,
        "progress": None if row.progress_total is None else {
            "done": row.progress_done, "total": row.progress_total, "what": row.progress_what},
        "error_code": row.error_code,
        "hint": row.hint,
        "identity": row.identity,
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "pushed_digest": row.pushed_digest,
        "push": row.push,
        "warnings": row.warnings,
        "request": row.request,
    }


def image_answer(filename: str, record: ImageRecord) -> dict[str, Any]:
    """A finished image and what is known of how it was made."""
    return {
        "filename": filename,
        "image_id": record.image_id,
        "identity": record.identity,
        "platform": record.platform,
        "sha256": record.sha256,
        "size_bytes": record.size_bytes,
        "created_at": _time(record.created),
        **record.details,
    }


def _time(value: datetime.datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="milliseconds")[:-6] + "Z"
