"""Log what the service's processes do: one line for each event, on standard error.

Lines about what users do read `action=… subject=… user=… address=…`; no secret is ever part of one.
With the format `json` each line is an object, with the user of the request or the run that the line
is about in fields of their own.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import logging
from collections.abc import Iterator
from typing import Any

from flask import g, has_request_context, request

TEXT, JSON = "text", "json"
FIELDS = ("action", "subject", "user", "address", "build", "run")
"""What a line is about: the `extra` of the call that logs."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_run: contextvars.ContextVar[str | None] = contextvars.ContextVar("cic_run", default=None)


class JsonLines(logging.Formatter):
    """Formats a line as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(
                record.created, datetime.timezone.utc
            ).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_about_request(),
            "run": _run.get(),
        }
        said |= {name: vars(record)[name] for name in FIELDS if name in vars(record)}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(
            {key: value for key, value in said.items() if value is not None}, default=str
        )


@contextlib.contextmanager
def about_run(run_id: str) -> Iterator[None]:
    """Mark whatever this thread logs within the block as being about a run."""
    before = _run.set(run_id)
    try:
        yield
    finally:
        _run.reset(before)


def log_to_stderr(form: str = TEXT) -> None:
    """Send log lines of this process to standard error, unless it has arranged for them already."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == JSON else logging.Formatter(_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _about_request() -> dict[str, Any]:
    """Who asks for what, where a request is being answered; nothing is looked up for it."""
    if not has_request_context():
        return {}
    who = g.get("flask_httpauth_user") or g.get("_login_user")
    return {
        "method": request.method,
        "path": request.path,
        "address": request.remote_addr,
        "user": getattr(who, "name", None),
    }
