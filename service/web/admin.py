"""Serve the operator's page: what goes on, who builds, who may use the service.

For other users the page does not exist.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, abort, flash, redirect, render_template, url_for
from werkzeug.wrappers import Response as AnyResponse

from service.db import accounts, runs
from service.errors import Missing
from service.web.forms import record_audit_event
from service.web.session import service, user
from service.workers import registry

ACTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "confirm": ({"is_confirmed": True, "is_active": True}, "{} may log in."),
    "promote": ({"is_admin": True}, "{} is an administrator."),
    "demote": ({"is_admin": False}, "{} is no administrator any more."),
    "block": ({"is_active": False}, "{} may not log in any more."),
    "unblock": ({"is_active": True}, "{} may log in again."),
}


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/admin", "admin", admin)
    web.add_url_rule(
        "/admin/users/<int:user_id>/<action>", "change_user", change_user, methods=["POST"]
    )


def admin() -> str:
    _require_admin()
    parts = service()
    waiting, running = runs.queue(parts.engine)
    return render_template(
        "admin.html",
        users=accounts.users(parts.engine),
        waiting=waiting,
        running=running,
        workers=registry.all_workers(
            parts.engine, lost_after_s=parts.settings.service.lost_worker_after_s
        ),
    )


def change_user(user_id: int, action: str) -> AnyResponse:
    """Change or remove a user; administrators cannot lock out or remove themselves."""
    _require_admin()
    row = accounts.by_id(service().engine, user_id)
    if row is None or action not in (*ACTIONS, "remove"):
        raise Missing("There is no such user.")
    if row.id == user().id:
        flash("Another administrator has to do this to you.", "warning")
        return redirect(url_for("web.admin"))
    if action == "remove":
        accounts.remove_user(service().engine, row.name)
        said = "{} was removed."
    else:
        values, said = ACTIONS[action]
        accounts.change_user(service().engine, row.name, **values)
    record_audit_event(f"user {action}", row.name)
    flash(said.format(row.name), "success")
    return redirect(url_for("web.admin"))


def _require_admin() -> None:
    if not user().is_admin:
        abort(404, "There is no such page.")
