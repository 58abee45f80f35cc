"""Format values for pages: times, sizes, spans, states."""

from __future__ import annotations

import datetime
from typing import Any

from flask import Flask
from markupsafe import Markup, escape

from image_builder.errors import with_hint
from image_builder.state import BuildState
from service.db.database import now

STATE_COLOURS = {
    BuildState.PENDING: "secondary",
    BuildState.STARTED: "info",
    BuildState.BUILDING: "info",
    BuildState.CONVERTING: "info",
    BuildState.FINISHED: "success",
    BuildState.FAILED: "danger",
}


def install(app: Flask) -> None:
    """Add these filters to the templates."""
    app.jinja_env.filters.update(
        moment=moment,
        age=age,
        size=size,
        span=span,
        brief=brief,
        state_colour=state_colour,
        with_hint=with_hint,
    )
    app.jinja_env.globals.update(now=now)
    app.jinja_env.policies["json.dumps_kwargs"] = {"sort_keys": False}


def moment(value: datetime.datetime | None) -> Markup:
    """Return a time as HTML; a script shows it in the reader's zone, with UTC on hover."""
    if value is None:
        return Markup("–")
    utc = value.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        value.isoformat(), utc, utc[:16] + " UTC"
    )


def age(value: datetime.datetime | None) -> Markup:
    """Return how long ago a time is, with the time on hover."""
    if value is None:
        return Markup("–")
    utc = value.strftime("%Y-%m-%d %H:%M:%S UTC")
    text = "just now" if (now() - value).total_seconds() < 10 else f"{span(now() - value)} ago"
    return Markup('<time datetime="{}" title="{}" data-age>{}</time>').format(
        value.isoformat(), utc, text
    )


def span(value: datetime.timedelta | float | None) -> str:
    """Return a span of time in its two largest units at the most: `1 h 5 min`."""
    if value is None:
        return "–"
    seconds = int(max(0, value.total_seconds() if isinstance(value, datetime.timedelta) else value))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min" + (
            f" {seconds % 60} s" if seconds < 600 and seconds % 60 else ""
        )
    if seconds < 86400:
        return f"{seconds // 3600} h" + (
            f" {seconds % 3600 // 60} min" if seconds % 3600 >= 60 else ""
        )
    days = seconds // 86400
    return f"{days} day" + ("s" if days > 1 else "")


def brief(seconds: float) -> str:
    """Return a span of time as `span` does, and of a short one a tenth of its seconds, too."""
    return f"{max(0.0, seconds):.1f} s" if seconds < 10 else span(seconds)


def size(value: int | None) -> str:
    """Return a number of bytes with its unit."""
    if value is None:
        return "–"
    if value < 1000:
        return f"{value} B"
    number = float(value)
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 1000 or unit == "TB":
            break
    return f"{number:.1f} {unit}"


def state_colour(state: Any) -> str:
    """Return Bootstrap's colour of a build's state."""
    return (
        STATE_COLOURS.get(BuildState(state), "secondary")
        if state in BuildState.__members__
        else "secondary"
    )


def lines(text: str) -> Markup:
    """Return a text as HTML that keeps its line breaks."""
    return Markup("<br>").join(escape(line) for line in text.splitlines())
