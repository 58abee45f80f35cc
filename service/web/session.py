"""Who is logged in, by a cookie. A session ends when what proves the user changes."""

from __future__ import annotations

import urllib.parse
from typing import Any

from flask import abort, current_app, redirect, request, session, url_for
from flask_login import LoginManager, UserMixin, current_user, login_user
from werkzeug.wrappers import Response

from service.context import Service
from service.db import accounts

PUBLIC = frozenset(
    {
        "web.login",
        "web.signup",
        "web.captcha_picture",
        "web.captcha_sound",
        "web.logout",
        "web.docs",
    }
)

login_manager = LoginManager()


class User(UserMixin):  # type: ignore[misc]
    """The user of a session."""

    def __init__(self, row: Any) -> None:
        self.id: int = row.id
        self.name: str = row.name
        self.is_admin: bool = row.is_admin
        self.may_log_in: bool = row.is_active and row.is_confirmed
        self.credential_version: int = row.credential_version

    def get_id(self) -> str:
        """The session's name for the user: another after every change of the user's credentials."""
        return f"{self.id}:{self.credential_version}"


def service() -> Service:
    """What the present application is made of."""
    found: Service = current_app.extensions["cic"]
    return found


def user() -> User:
    """Who asks."""
    found: User = current_user._get_current_object()
    return found


@login_manager.user_loader  # type: ignore[untyped-decorator,unused-ignore]
def _load(name: str) -> User | None:
    user_id, _, version = name.partition(":")
    row = accounts.by_id(service().engine, int(user_id)) if user_id.isdigit() else None
    found = None if row is None else User(row)
    return (
        found
        if found is not None and found.may_log_in and str(found.credential_version) == version
        else None
    )


def begin_session(row: Any) -> None:
    """Log a user in, with nothing left of the session before."""
    session.clear()
    session.permanent = True
    login_user(User(row))


def require_login() -> Response | None:
    """No page without a login but the public ones. A browser that follows a link is sent to log in
    and back.
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
    abort(401)


def safe_target(target: str | None) -> str:
    """Where to go after logging in: a page of this service, else its first one."""
    home = url_for("web.home")
    if not target or not target.startswith(f"{request.root_path}/") or target.startswith("//"):
        return home
    if "\\" in target or not target.isprintable() or any(urllib.parse.urlsplit(target)[:2]):
        return home
    return target
