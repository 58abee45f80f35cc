"""Serve the page of a user's own account: the password, and the tokens for programs."""

from __future__ import annotations

import datetime
from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask_wtf import FlaskForm
from werkzeug.wrappers import Response as AnyResponse
from wtforms import PasswordField, SelectField, StringField
from wtforms.validators import EqualTo, InputRequired

from image_builder.errors import FieldProblem, InvalidRequest
from service.db import accounts
from service.db.database import now
from service.errors import Missing
from service.web.forms import add_problems, options, record_audit_event
from service.web.session import begin_session, service, user

LIVES = {"7": "A week", "30": "30 days", "90": "90 days", "365": "A year", "": "For ever"}
SCOPES = {"read build": "See and build", "read": "See only"}
ADMIN_SCOPES = SCOPES | {"read build admin": "See, build and administer"}
MAX_TOKENS = 50


class PasswordForm(FlaskForm):  # type: ignore[misc]
    present = PasswordField(
        "Present password",
        [InputRequired("Write your present password.")],
        render_kw={"autocomplete": "current-password"},
    )
    password = PasswordField(
        "New password",
        [InputRequired("Choose a password.")],
        description=f"At least {accounts.MIN_PASSWORD} characters.",
        render_kw={"autocomplete": "new-password"},
    )
    repeated = PasswordField(
        "New password again",
        [EqualTo("password", "The two passwords differ.")],
        render_kw={"autocomplete": "new-password"},
    )


class TokenForm(FlaskForm):  # type: ignore[misc]
    name = StringField("What it is for", render_kw={"maxlength": 100, "autocomplete": "off"})
    life = SelectField("How long it works", choices=options(LIVES), default="90")
    scopes = SelectField("What it may do", choices=options(SCOPES))

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.scopes.choices = options(ADMIN_SCOPES if user().is_admin else SCOPES)


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/account", "account", account)
    web.add_url_rule("/account/password", "change_password", change_password, methods=["POST"])
    web.add_url_rule("/account/tokens", "add_token", add_token, methods=["POST"])
    web.add_url_rule(
        "/account/tokens/<int:token_id>/revoke", "revoke_token", revoke_token, methods=["POST"]
    )


def account() -> str:
    return _page()


def change_password() -> Any:
    """Change the password: all sessions end, and this browser begins another."""
    form = PasswordForm()
    if not form.validate():
        return _page(password_form=form), 400
    known = service().authenticator.by_credentials(
        user().name, form.present.data, request.remote_addr or ""
    )
    if known is None or known.id != user().id:
        form.present.errors = ["This is not your present password."]
        return _page(password_form=form), 400
    try:
        accounts.set_password(service().engine, user().name, form.password.data)
    except InvalidRequest as error:
        add_problems(form, error.problems)
        return _page(password_form=form), 400
    record_audit_event("password")
    begin_session(accounts.by_id(service().engine, known.id))
    flash("You have another password. Every other session has ended; tokens still work.", "success")
    return redirect(url_for("web.account"))


def add_token() -> Any:
    """Make a token and show it, this once: no session and no address holds it."""
    form = TokenForm()
    if not form.validate():
        return _page(token_form=form), 400
    days = int(form.life.data) if form.life.data else None
    try:
        if len(accounts.tokens_of(service().engine, user().id)) >= MAX_TOKENS:
            raise InvalidRequest(
                [FieldProblem("name", "you have many tokens already", "revoke some first")]
            )
        token = accounts.add_token(
            service().engine,
            user().id,
            form.name.data or "",
            scopes=form.scopes.data.split(),
            expires_at=now() + datetime.timedelta(days=days) if days else None,
        )
    except InvalidRequest as error:
        add_problems(form, error.problems)
        return _page(token_form=form), 400
    record_audit_event("token", form.name.data)
    return _page(token=token)


def revoke_token(token_id: int) -> AnyResponse:
    if not accounts.revoke_token(service().engine, user().id, token_id):
        raise Missing("There is no such token.")
    record_audit_event("revoke token", str(token_id))
    flash("The token does not work any more.", "success")
    return redirect(url_for("web.account"))


def _page(
    *,
    password_form: PasswordForm | None = None,
    token_form: TokenForm | None = None,
    token: str = "",
) -> str:
    return render_template(
        "account.html",
        password_form=password_form or PasswordForm(formdata=None),
        token=token,
        token_form=token_form or TokenForm(formdata=None),
        tokens=accounts.tokens_of(service().engine, user().id),
    )
