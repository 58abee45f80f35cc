"""Define the blueprint of the pages: access, headers, and how errors look."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Flask, Request, Response, render_template, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask_bootstrap import Bootstrap5
from flask_login import current_user
from flask_wtf.csrf import CSRFError, CSRFProtect
from werkzeug.exceptions import HTTPException, Unauthorized
from werkzeug.wrappers import Response as AnyResponse

from image_builder.errors import CicError, ServiceError
from service import errors, problems
from service.api.routes import api
from service.db import sessions
from service.fair_use import tell_allowance
from service.web import (
    account,
    admin,
    builds,
    contents,
    docs,
    filters,
    images,
    institute,
    machines,
    new_build,
    notices,
    sign_in,
    timelines,
)
from service.web.forms import captcha_hosts
from service.web.session import login_manager, require_login, service, user

PROGRAMS = frozenset(
    {
        "build",
        "image",
        "group",
        "auth",
        "architecture",
        "machine",
        "webhook",
        "mail",
        "notice",
        "health",
        "metrics",
        "openapi.json",
    }
)
"""Where the API's calls begin."""
COSTLY = frozenset({"web.preview", "web.choices", "web.workflows", "web.retry", "web.test_webhook"})
"""Pages that look something up, or build; so does the form for a build when it is sent."""

_log = logging.getLogger(__name__)


class _Sessions(SecureCookieSessionInterface):
    """Flask's sessions, with a cookie that belongs to the service's root and the request's scheme.

    Programs' calls have none: they log in each time, and some of them come a thousand times a
    second.
    """

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        return (
            None
            if request.path.split("/", 2)[1] in PROGRAMS
            else super().open_session(app, request)
        )

    def get_cookie_path(self, app: Flask) -> str:
        return request.root_path or "/"

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or super().get_cookie_secure(app)


def install(app: Flask) -> None:
    """Add the pages to an application."""
    app.config.update(
        BOOTSTRAP_SERVE_LOCAL=True,
        WTF_CSRF_TIME_LIMIT=None,
        PERMANENT_SESSION_LIFETIME=sessions.LIFE,
        SESSION_REFRESH_EACH_REQUEST=False,
    )  # an answer on its way must not undo a log-out
    keys = [*reversed(app.config["SECRET_KEY_FALLBACKS"]), app.config["SECRET_KEY"]]
    app.config["WTF_CSRF_SECRET_KEY"] = keys  # the last one signs, and all of them are good
    app.session_interface = _Sessions()
    Bootstrap5(app)
    CSRFProtect(app).exempt(api)
    login_manager.init_app(app)
    filters.install(app)
    web = Blueprint("web", __name__)
    web.before_request(_count)
    web.before_request(require_login)
    web.after_request(_with_headers)
    web.after_request(tell_allowance)
    for part in (
        sign_in,
        institute,
        builds,
        timelines,
        new_build,
        images,
        contents,
        machines,
        docs,
        account,
        notices,
        admin,
    ):
        part.add_pages(web)
    web.register_error_handler(CicError, _from_error)
    web.register_error_handler(HTTPException, _from_http)
    web.register_error_handler(Exception, _from_surprise)
    app.register_error_handler(404, _no_such_page)
    app.register_blueprint(web)


def _count() -> None:
    """Count a page as a call of its user, or of an address that has not logged in."""
    if current_user.is_authenticated:
        is_sent = request.endpoint == "web.new_build" and request.method == "POST"
        is_costly = is_sent or request.endpoint in COSTLY
        service().fair_use.count_user(user().id, is_costly=is_costly)
    else:
        service().fair_use.count_stranger(request)


def _with_headers(response: Response) -> Response:
    hosts = " ".join(captcha_hosts()) if request.endpoint == "web.signup" else ""
    own = f"'self' {hosts}".strip()
    response.headers["Content-Security-Policy"] = "; ".join(
        (
            "default-src 'none'",
            f"script-src {own}",
            f"style-src {own}",
            f"connect-src {own}",
            "img-src 'self' data:",
            "media-src 'self'",
            "font-src 'self'",
            f"frame-src {hosts or chr(39) + 'none' + chr(39)}",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _from_error(error: CicError) -> AnyResponse:
    status = errors.status_of(error)
    if status >= 500 and not isinstance(error, ServiceError):
        _log.error("%s %s: %s", request.method, request.path, error, exc_info=error)
    page = _page(status, error.message, error.hint)
    page.headers.update(errors.retry_after(error))
    return page


def _from_http(error: HTTPException) -> AnyResponse:
    if isinstance(error, CSRFError):
        return _page(
            400,
            "This form is out of date.",
            "Go back, load the page again and send the form once more.",
        )
    if isinstance(error, Unauthorized):
        return problems.problem(
            401, "UNAUTHORIZED", "You are not logged in any more.", hint="Log in again."
        )
    status = error.code or 500
    if error.response is not None and status < 400:
        return error.response  # type: ignore[return-value]
    return _page(status, error.description or "", "")


def _from_surprise(error: Exception) -> AnyResponse:
    _log.error("%s %s failed", request.method, request.path, exc_info=error)
    return _page(
        500,
        "The service failed at this request.",
        "Ask the operator to look into the service's log.",
    )


def _no_such_page(error: HTTPException) -> Any:
    """An unknown address: a page for browsers, a problem document for programs."""
    if wants_page():
        return _with_headers(Response(*_rendered(404, "There is no such page.", "")))
    return problems.from_http(error)


def wants_page() -> bool:
    """Return whether a browser asks, which prefers HTML."""
    return request.accept_mimetypes.best_match([problems.PROBLEM_TYPE, "text/html"]) == "text/html"


def _page(status: int, message: str, hint: str) -> AnyResponse:
    return Response(*_rendered(status, message, hint))


def _rendered(status: int, message: str, hint: str) -> tuple[str, int]:
    title = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    return render_template(
        "error.html", title=title, status=status, message=message, hint=hint
    ), status
