"""Serve the page of a build's timeline: what ran when, and how long it took."""

from __future__ import annotations

from flask import Blueprint, render_template

from image_builder.timeline.spans import OUTCOMES
from service.db import timelines as db_timelines
from service.db.database import now
from service.timeline import timeline_of
from service.web.builds import own_build, title_of
from service.web.session import service
from service.web.timeline_drawing import BAR_HEIGHT, WIDTH, draw


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/builds/<build_id>/timeline", "timeline", timeline)


def timeline(build_id: str) -> str:
    row = own_build(build_id)
    shown = timeline_of(row, db_timelines.document(service().engine, row.run_id))
    return render_template(
        "timeline.html",
        build=row,
        title=title_of(row.request),
        shown=shown,
        drawing=draw(shown, now().timestamp()),
        outcomes=OUTCOMES,
        width=WIDTH,
        bar_height=BAR_HEIGHT,
    )
