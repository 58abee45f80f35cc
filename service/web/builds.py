"""Serve the pages of a user's builds: the list, and one build with its log and its actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, flash, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from image_builder.errors import InvalidRequest
from image_builder.request.build_request import OWN_STEP
from image_builder.sources.own_description import parse_any_request
from image_builder.state import ACTIVE, BuildState
from service.api.build_answers import build_answer
from service.api.log_stream import log_events
from service.db import builds as db_builds
from service.db.database import now
from service.errors import Missing
from service.logs import follow, protocol
from service.web.forms import page_number, record_audit_event
from service.web.session import service, user

PER_PAGE = 20
STAGES = {
    "queue": "It waits for its turn.",
    "prepare": "It is prepared.",
    "build": "It is being built.",
    "install": "Packages are being installed.",
    "convert": "The image becomes a SIF file.",
}
_STEPS = (
    BuildState.PENDING,
    BuildState.STARTED,
    BuildState.BUILDING,
    BuildState.CONVERTING,
    BuildState.FINISHED,
)
_STEP_NAMES = {
    BuildState.PENDING: "Queue",
    BuildState.STARTED: "Prepare",
    BuildState.BUILDING: "Build",
    BuildState.CONVERTING: "Convert",
    BuildState.FINISHED: "Finished",
    BuildState.FAILED: "Failed",
}


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/builds", "builds", builds)
    web.add_url_rule("/builds/<build_id>", "build", build)
    web.add_url_rule("/builds/<build_id>/state", "build_state", build_state)
    web.add_url_rule("/builds/<build_id>/log", "build_log", build_log)
    for action in (cancel, retry, delete):
        web.add_url_rule(
            f"/builds/<build_id>/{action.__name__}", action.__name__, action, methods=["POST"]
        )


def builds() -> str:
    page = page_number()
    asked = request.args.get("status", "").upper()
    status = BuildState(asked) if asked in BuildState.__members__ else None
    rows, total = db_builds.builds_of(
        service().engine, user().id, status=status, page=page, per_page=PER_PAGE
    )
    return render_template(
        "builds.html",
        builds=[_summary(row) for row in rows],
        page=page,
        total=total,
        status=status,
        states=list(BuildState),
        pages=-(-total // PER_PAGE),
        is_going_on=any(_state(row) in ACTIVE for row in rows),
    )


def build(build_id: str) -> str:
    row = own_build(build_id)
    return render_template("build.html", **_progress(row))


def build_state(build_id: str) -> Response:
    """Return the part of a build's page that changes, which the page's script asks for."""
    row = own_build(build_id)
    return jsonify(
        {
            "status": _state(row).value,
            "ended": row.own_state is not None,
            "html": render_template("build_progress.html", **_progress(row)),
        }
    )


def build_log(build_id: str) -> Response:
    """Send the log: as it grows for an EventSource, else the whole as a file."""
    row = own_build(build_id)
    kept = service().logs.of(row.run_id)
    if "text/event-stream" in request.headers.get("Accept", ""):
        return log_events(build_id, kept)
    end, size_bytes = follow.own_part(row), kept.size_bytes()
    own_bytes = size_bytes if end is None else min(end, size_bytes)
    response = Response(
        protocol.blocks(kept, 0, own_bytes), content_type="text/plain; charset=utf-8"
    )
    response.headers["Content-Disposition"] = f'attachment; filename="{build_id}.log"'
    return response


def cancel(build_id: str) -> AnyResponse:
    own_build(build_id)
    service().submission.withdraw(build_id)
    record_audit_event("cancel", build_id)
    return redirect(url_for("web.build", build_id=build_id))


def retry(build_id: str) -> AnyResponse:
    """Submit the same request once more."""
    asked = _parsed(own_build(build_id))
    if asked is None:
        return redirect(f"{url_for('web.new_build')}?from={build_id}")
    new_id = service().submission.submit(asked, user_id=user().id, is_admin=user().is_admin)
    record_audit_event("build", new_id)
    return redirect(url_for("web.build", build_id=new_id))


def delete(build_id: str) -> AnyResponse:
    own_build(build_id)
    if not db_builds.delete_build(service().engine, build_id):
        flash("The build has not ended: cancel it first.", "warning")
        return redirect(url_for("web.build", build_id=build_id))
    record_audit_event("delete", build_id)
    flash("The build was deleted.", "success")
    return redirect(url_for("web.builds"))


def own_build(build_id: str) -> Any:
    """Return the user's build of this id; raise `Missing` for any other."""
    row = db_builds.build(service().engine, build_id) if len(build_id) == 36 else None
    if row is None or row.user_id != user().id:
        raise Missing("There is no such build.", hint="Your builds are in the list.")
    return row


def _state(row: Any) -> BuildState:
    state: BuildState = row.own_state or row.run_state
    return state


def _summary(row: Any) -> dict[str, Any]:
    """What the list and the page of a build show of it."""
    answer = build_answer(row)
    started = (
        row.started_at if row.started_at and row.started_at >= row.created_at else row.created_at
    )
    return {
        "row": row,
        "state": _state(row),
        "title": title_of(row.request),
        "machine": row.request["machine"],
        "version": row.request.get("version"),
        "progress": answer["progress"],
        "message": answer["message"],
        "duration": (row.ended_at or now()) - started if row.started_at else None,
    }


def title_of(asked: Mapping[str, Any]) -> str:
    """Return what pages call a stored request: its step, or the name of its own description."""
    if asked.get("workflow"):  # a step of the registry, or a folder that is called as one
        return f"{asked['workflow']} / {asked['step_id']}"
    return " / ".join((asked.get("name") or OWN_STEP).split("/"))


def _progress(row: Any) -> dict[str, Any]:
    """What a build's page shows of how far it is."""
    stage = STAGES.get(row.stage or "queue", row.stage)
    return {**_summary(row), "build": row, "stage": stage, "steps": _steps(row)}


def _steps(row: Any) -> list[dict[str, Any]]:
    """The stages of a build in their order, each with when it began and how it looks."""
    state = _state(row)
    begun = {
        BuildState.PENDING: row.created_at,
        BuildState.STARTED: row.started_at,
        BuildState.CONVERTING: row.converting_at,
        BuildState.BUILDING: row.building_at,
        BuildState.FINISHED: row.ended_at,
    }
    if state is BuildState.FAILED:
        seen = [step for step in _STEPS[:-1] if begun[step] is not None]
        return [{"name": _STEP_NAMES[step], "at": begun[step], "look": "done"} for step in seen] + [
            {"name": _STEP_NAMES[state], "at": row.ended_at, "look": "failed"}
        ]
    place = _STEPS.index(state)
    looks = [
        "done" if index < place or state is BuildState.FINISHED else "now" if index == place else ""
        for index in range(len(_STEPS))
    ]
    shown = [
        step for step in _STEPS if step is not BuildState.CONVERTING or row.filename is not None
    ]
    return [
        {
            "name": _STEP_NAMES[step],
            "look": looks[_STEPS.index(step)],
            "at": begun[step] if looks[_STEPS.index(step)] else None,
        }
        for step in shown
    ]


def _parsed(row: Any) -> Any:
    """The request of a build; None where this version would refuse it."""
    try:
        return parse_any_request(row.request)
    except InvalidRequest:
        return None
