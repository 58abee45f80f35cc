"""Turn every exception into an RFC 9457 problem document, in one place."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, request
from typing_extensions import NotRequired, TypedDict
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from image_builder.errors import (
    CicError,
    ErrorCode,
    FieldProblem,
    InvalidRequest,
    NoSpace,
    NotFound,
    ServiceError,
)
from service.errors import Forbidden, TooManyRequests, WrongMediaType, retry_after, status_of

_log = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
DRAIN_BYTES = 64 * 1024**2
"""How much of a body that is too large is read and dropped, so that its sender gets the answer."""


class WrongField(TypedDict):
    """A wrong field: where it is, what is wrong with it, and what to write instead."""

    field: str
    problem: str
    hint: str


class Problem(TypedDict):
    """What is wrong (RFC 9457): `code` for programs, `detail` and `hint` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: NotRequired[str]
    errors: NotRequired[list[WrongField]]
    error_id: NotRequired[str]
    checks: NotRequired[dict[str, str]]


def install(app: Flask) -> None:
    """Let the application answer every exception with a problem document."""
    app.register_error_handler(CicError, _from_error)
    app.register_error_handler(HTTPException, from_http)
    app.register_error_handler(Exception, _from_surprise)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    hint: str = "",
    errors: Sequence[FieldProblem] = (),
    more: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the answer with a problem document."""
    body: Problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if hint:
        body["hint"] = hint
    if errors:
        body["errors"] = [
            {"field": error.field, "problem": error.problem, "hint": error.hint} for error in errors
        ]
    return Response(
        json.dumps({**body, **(more or {})}),
        status=status,
        content_type=PROBLEM_TYPE,
        headers=dict(headers or {}),
    )


def _from_error(error: CicError) -> Response:
    status = status_of(error)
    if isinstance(error, InvalidRequest):
        return problem(status, error.code.value, "The request is not valid.", errors=error.problems)
    if status == 503 and not isinstance(error, ServiceError):
        _log.error("%s %s: %s", request.method, request.path, error, exc_info=error)
    named = [error] if isinstance(error, NotFound) and error.field else []
    return problem(
        status,
        _code(error),
        error.message,
        hint=error.hint,
        errors=[FieldProblem(one.field, one.message, one.hint) for one in named],
        headers=retry_after(error),
    )


def _code(error: CicError) -> str:
    if isinstance(error, Forbidden):
        return "FORBIDDEN"
    if isinstance(error, WrongMediaType):
        return "UNSUPPORTED_MEDIA_TYPE"
    return "TOO_MANY_REQUESTS" if isinstance(error, TooManyRequests) else error.code.value


def from_http(error: HTTPException) -> Response:
    """Return a problem document for an error between the request and any call."""
    if isinstance(error, RequestEntityTooLarge):
        _drain()
        return problem(
            413,
            "TOO_LARGE",
            "The body is too large.",
            hint="A request is a small JSON object.",
            errors=[
                FieldProblem(
                    "body", "is too large", "send a JSON object with machine, workflow and step_id"
                )
            ],
        )
    status = error.code or 500
    if error.response is not None and status < 400:  # a redirect
        return Response(status=status, headers=dict(error.response.headers))
    headers = {
        name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")
    }
    return problem(status, HTTPStatus(status).name, error.description or "", headers=headers)


def _from_surprise(error: Exception) -> Response:
    if NoSpace.is_meant_by(error):
        return _from_error(
            NoSpace("A disk is full.", hint="Try again later; the operator has to make room.")
        )
    number = secrets.token_hex(6)  # joins the user's answer and the operator's log
    _log.error("error=%s %s %s failed", number, request.method, request.path, exc_info=error)
    return problem(
        500,
        ErrorCode.INTERNAL.value,
        "The service failed at this request.",
        hint=f"Ask the operator to look for {number} in the service's log.",
        more={"error_id": number},
    )


def _drain() -> None:
    """Read what is left of the body, up to a bound.

    A server that closes on unread bytes cuts its own answer off.
    """
    stream, left = (
        request.environ.get("wsgi.input"),
        min(request.content_length or DRAIN_BYTES, DRAIN_BYTES),
    )
    try:
        while stream is not None and left > 0 and (chunk := stream.read(min(left, 1024**2))):
            left -= len(chunk)
    except (OSError, ValueError):
        _log.debug("a body that is too large ended early")
