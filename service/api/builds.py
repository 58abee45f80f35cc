"""Answer the REST calls about builds."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.request.build_request import BuildRequest
from image_builder.sources.own_description import parse_any_request
from service.api import build_answers, folders
from service.api.build_answers import build_answer, timeline_answer
from service.api.caller import note, principal
from service.api.log_stream import log_events
from service.api.openapi import FORM, TEXT, Answer, describes
from service.api.queries import LogQuery, Page, PostedFolder, PostedRequest, parse_query
from service.context import service
from service.db import builds, timelines
from service.errors import Missing
from service.logs import follow, protocol
from service.timeline import timeline_of

LOG_ANSWER_BYTES = 1024**2
"""How much of a log one answer holds."""
_ITS_ID = {"build_id": "$response.body#/id"}
_FIRST_BUILD = {"build_id": "$response.body#/builds/0/id"}


def add_calls(api: Blueprint) -> None:
    api.add_url_rule("/build/", view_func=submit, methods=["POST"])
    api.add_url_rule("/build/plan", view_func=plan, methods=["POST"])
    api.add_url_rule("/build/", view_func=list_builds)
    api.add_url_rule("/build/<build_id>", view_func=status)
    api.add_url_rule("/build/<build_id>/cancel", view_func=cancel, methods=["POST"])
    api.add_url_rule("/build/<build_id>", view_func=delete, methods=["DELETE"])
    api.add_url_rule("/build/<build_id>/log", view_func=log)
    api.add_url_rule("/build/<build_id>/timeline", view_func=timeline)


@describes(
    "Ask for an image",
    body=PostedRequest,
    form=PostedFolder,
    answer=build_answers.Accepted,
    problems=(404,),
    links={"status": _ITS_ID, "log": _ITS_ID, "cancel": _ITS_ID},
    is_costly=True,
)
def submit() -> Response:
    """Take a request: a JSON object, or one with a folder, as `multipart/form-data`."""
    who = principal()
    has_folder = request.mimetype == FORM
    asked = folders.request_with_folder(request, who.id) if has_folder else _asked(who.id)
    build_id = service().submission.submit(asked, user_id=who.id, is_admin=who.is_admin)
    note("build", build_id)
    return jsonify({"id": build_id} | ({"folder": asked.folder} if asked.folder else {}))


@describes(
    "See what would be built",
    body=PostedRequest,
    answer=build_answers.PlanAnswer,
    problems=(404,),
    is_costly=True,
)
def plan() -> Response:
    who = principal()
    asked = _asked(who.id)
    planned = service().submission.plan(asked, user_id=who.id, is_admin=who.is_admin)
    would: build_answers.PlanAnswer = {
        "image_id": planned.image_id,
        "filename": planned.filename,
        "identity": planned.identity,
        "spack_yaml": planned.spack_yaml,
        "dockerfile": planned.dockerfile,
        "warnings": list(planned.warnings),
    }
    if planned.description_yaml is not None:
        would["description_yaml"] = planned.description_yaml
    return jsonify(would)


@describes(
    "List your builds", query=Page, answer=build_answers.BuildList, links={"status": _FIRST_BUILD}
)
def list_builds() -> Response:
    asked = parse_query(Page, request.args)
    rows, total = builds.builds_of(
        service().engine,
        principal().id,
        status=asked.status,
        page=asked.page,
        per_page=asked.per_page,
    )
    answer: build_answers.BuildList = {
        "builds": [build_answer(row) for row in rows],
        "page": asked.page,
        "per_page": asked.per_page,
        "total": total,
        "pages": -(-total // asked.per_page),
    }
    return jsonify(answer)


@describes("Ask for a build's status", answer=build_answers.BuildAnswer)
def status(build_id: str) -> Response:
    return jsonify(build_answer(_own_build(build_id)))


@describes("Cancel a build", answer=build_answers.BuildAnswer, links={"delete": _ITS_ID})
def cancel(build_id: str) -> Response:
    _own_build(build_id)
    service().submission.withdraw(build_id)
    note("cancel", build_id)
    return jsonify(build_answer(_own_build(build_id)))


@describes(
    "Delete a build that has ended",
    answers={204: Answer(description="It is gone.")},
    problems=(400,),
)
def delete(build_id: str) -> Response:
    _own_build(build_id)
    if not builds.delete_build(service().engine, build_id):
        raise InvalidRequest([FieldProblem("id", "the build has not ended", "cancel it first")])
    note("delete", build_id)
    return Response(status=204)


@describes(
    "Read a build's log from a byte on, or follow it",
    query=LogQuery,
    answers={
        200: Answer(
            description="The log, as text or as server-sent events.",
            content={"text/plain": TEXT, "text/event-stream": TEXT},
            headers={
                "X-Log-Offset": "where to go on",
                "X-Log-Complete": "true when nothing will follow",
            },
        )
    },
)
def log(build_id: str) -> Response:
    row = _own_build(build_id)
    kept = service().logs.of(row.run_id)
    if (
        request.accept_mimetypes.best_match(["text/plain", "text/event-stream"])
        == "text/event-stream"
    ):
        return log_events(build_id, kept)
    offset = parse_query(LogQuery, request.args).offset
    end = follow.own_part(row)
    size_bytes = kept.size_bytes() if end is None else min(end, kept.size_bytes())
    next_offset = max(offset, min(offset + LOG_ANSWER_BYTES, size_bytes))
    return Response(
        protocol.blocks(kept, offset, next_offset),
        content_type="text/plain; charset=utf-8",
        headers={
            "X-Log-Offset": str(next_offset),
            "X-Log-Complete": str(end is not None and next_offset >= size_bytes).lower(),
            "Content-Length": str(next_offset - offset),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )


@describes("See what ran in a build, and when", answer=build_answers.TimelineAnswer)
def timeline(build_id: str) -> Response:
    """Return the steps, layers and packages of a build, with their times, also while it goes on."""
    row = _own_build(build_id)
    return jsonify(
        timeline_answer(timeline_of(row, timelines.document(service().engine, row.run_id)))
    )


def _asked(user_id: int) -> BuildRequest:
    """Return the request in the body, which may name a finished build of the user."""
    submission = service().submission
    return parse_any_request(
        request.get_data(cache=False),
        machines=service().machines,
        kept=lambda build_id: submission.kept_request(build_id, user_id),
    )


def _own_build(build_id: str) -> Any:
    """Return the caller's build of this id; raise `Missing` for any other."""
    row = g.pop("cic_build", None)  # it came with the login; a second call gets what is true then
    if row is None and len(build_id) == 36:
        row = builds.build(service().engine, build_id)
    if row is None or row.user_id != principal().id:
        raise Missing("There is no such build.", hint="GET /build/ lists your builds.")
    return row
