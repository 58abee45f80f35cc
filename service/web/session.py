"""Keep people logged in by a cookie. A session ends when what proves the user changes."""

from __future__ import annotations

import urllib.parse
from typing import Any

from flask import abort, current_app, redirect, request, session, url_for
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from werkzeug.wrappers import Response

from service.context import Service
from service.db import sessions

PUBLIC = frozenset(
    {
        "web.login",
        "web.openid",
        "web.openid_back",
        "web.signup",
        "web.captcha_picture",
        "web.captcha_sound",
        "web.logout",
        "web.docs",
    }
)

login_manager = LoginManager()


class User(UserMixin):  # type: ignore[misc]
    """The user of a session, which `secret` opens."""

    def __init__(self, row: Any, secret: str) -> None:
        self.id: int = row.id
        self.name: str = row.name
        self.is_admin: bool = row.is_admin
        self.has_password: bool = bool(row.password_hash)
        self.may_log_in: bool = row.is_active and row.is_confirmed
        self.secret = secret

    def get_id(self) -> str:
        """Return what the cookie holds: the secret of this session, which the database ends."""
        return self.secret


def service() -> Service:
    """Return the parts of the present application."""
    parts: Service = current_app.extensions["cic"]
    return parts


def user() -> User:
    """Return who is logged in."""
    logged_in: User = current_user._get_current_object()
    return logged_in


@login_manager.user_loader  # type: ignore[untyped-decorator,unused-ignore]
def _load(secret: str) -> User | None:
    row = sessions.user_of(service().engine, secret)
    owner = None if row is None else User(row, secret)
    return owner if owner is not None and owner.may_log_in else None


def begin_session(row: Any) -> None:
    """Log a user in, with nothing left of an earlier session."""
    if current_user.is_authenticated:
        sessions.end(service().engine, user().secret)
    session.clear()
    session.permanent = True
    login_user(User(row, sessions.begin(service().engine, row.id, row.credential_version)))


def end_session() -> None:
    """End the session, for every copy of its cookie, too."""
    sessions.end(service().engine, user().secret)
    logout_user()
    session.clear()


def require_login() -> Response | None:
    """Refuse pages without a login, but for the public ones.

    A browser that follows a link is sent to log in and back.
    """
    if request.endpoint in PUBLIC or current_user.is_authenticated:
        return None
    if request.method in ("GET", "HEAD") and "text/html" in request.headers.get("Accept", ""):
        target = request.root_path + request.full_path.rstrip("?")
        return redirect(
            url_for("web.login", next=None if request.endpoint == "web.home" else target)
        )
    if request.method == "POST" and "text/html" in request.headers.get("Accept", ""):
        return redirect(url_for("web.login"))
    return abort(401)


def safe_target(target: str | None) -> str:
    """Return where to go after logging in: a page of this service, else its first one."""
    home = url_for("web.home")
    if not target or not target.startswith(f"{request.root_path}/") or target.startswith("//"):
        return home
    if "\\" in target or not target.isprintable() or any(urllib.parse.urlsplit(target)[:2]):
        return home
    return home if _climbs(urllib.parse.urlsplit(target).path) else target


def _climbs(path: str) -> bool:
    """Whether a browser would leave the folder that a path begins in: it decodes and drops dots."""
    decoded = path
    while (further := urllib.parse.unquote(decoded)) != decoded:
        decoded = further
    return "\\" in decoded or any(part in (".", "..") for part in decoded.split("/"))
