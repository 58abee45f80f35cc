"""A followed log as server-sent events."""

from __future__ import annotations

from typing import Any

from flask import Response, request

from service.api.queries import (
    LogQuery,
    parse_query,
)
from service.context import service
from service.db import builds
from service.logs import follow, protocol

RETRY_MS = 3000


def log_events(build_id: str, kept: protocol.Log) -> Response:
    """Followed for a while, or, when too many do so already, told what there is and asked to come
    back.
    """
    last = request.headers.get("Last-Event-ID")
    offset = parse_query(LogQuery, {"offset": last} if last else request.args).offset
    parts = service()
    streams, stream_s = parts.streams, parts.settings.service.log_stream_s

    def ends_at() -> int | None:
        found = builds.build(parts.engine, build_id)
        return 0 if found is None else follow.own_part(found)

    may_stay = streams.acquire(blocking=False)

    def events() -> Any:
        yield f"retry: {RETRY_MS}\n\n"
        yield from follow.follow(
            kept, offset, ends_at=ends_at, seconds=stream_s if may_stay else 0.0
        )

    response = Response(
        events(),
        content_type="text/event-stream; charset=utf-8",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
    if may_stay:
        response.call_on_close(streams.release)
    return response
