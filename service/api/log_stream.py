"""A followed log as server-sent events."""

from __future__ import annotations

from typing import Any

from flask import Response, request

from service.api.queries import LogQuery, parse_query
from service.context import service
from service.db import builds
from service.logs import follow, protocol
from service.serving.environ import WAITS

RETRY_MS = 3000


def log_events(build_id: str, kept: protocol.Log) -> Response:
    """Follow a log for a while; if too many do already, send what there is and when to return.

    Too many are those whose waiting would take the threads that others need; a server that waits
    without threads (`WAITS`) has no such bound.
    """
    last = request.headers.get("Last-Event-ID")
    offset = parse_query(LogQuery, {"offset": last} if last else request.args).offset
    parts = service()
    streams, stream_s = parts.streams, parts.settings.service.log_stream_s

    def ends_at() -> int | None:
        build = builds.build(parts.engine, build_id)
        return 0 if build is None else follow.own_part(build)

    server_waits = bool(request.environ.get(WAITS))
    holds_thread = not server_waits and streams.acquire(blocking=False)

    def events() -> Any:
        yield f"retry: {RETRY_MS}\n\n"
        yield from follow.follow(
            kept,
            offset,
            ends_at=ends_at,
            seconds=stream_s if server_waits or holds_thread else 0.0,
            waits=not server_waits,
        )

    response = Response(
        events(),
        content_type="text/event-stream; charset=utf-8",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
    if holds_thread:
        response.call_on_close(streams.release)
    return response
