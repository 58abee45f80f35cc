"""Serve the page of a user's own account: the password, and the tokens for programs."""

from __future__ import annotations

import datetime
import re
from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask_wtf import FlaskForm
from pydantic import SecretStr
from werkzeug.wrappers import Response as AnyResponse
from wtforms import PasswordField, SelectField, StringField
from wtforms.validators import EqualTo, InputRequired

from image_builder.errors import FieldProblem, InvalidRequest
from service import sealing
from service.db import accounts, git_credentials, groups, subjects
from service.db.database import now
from service.errors import Missing
from service.web.forms import add_problems, options, record_audit_event
from service.web.session import begin_session, service, user

LIVES = {"7": "A week", "30": "30 days", "90": "90 days", "365": "A year", "": "For ever"}
SCOPES = {"read build": "See and build", "read": "See only"}
ADMIN_SCOPES = SCOPES | {"read build admin": "See, build and administer"}


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


class CredentialForm(FlaskForm):  # type: ignore[misc]
    host = SelectField("Host", validate_choice=False)
    login = StringField("User", render_kw={"maxlength": 100, "autocomplete": "off"})
    secret = PasswordField(
        "Password or token",
        description="It is used for this host alone, and never shown again.",
        render_kw={"autocomplete": "off", "maxlength": 500},
    )

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.host.choices = git_hosts()


def git_hosts() -> list[str]:
    """Return the hosts that repositories of users may be on."""
    return sorted(
        host.lower() for host in service().settings.library.repositories.allowed_git_hosts or ()
    )


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/account", "account", account)
    web.add_url_rule("/account/credentials", "add_credential", add_credential, methods=["POST"])
    web.add_url_rule(
        "/account/credentials/<int:credential_id>/remove",
        "remove_credential",
        remove_credential,
        methods=["POST"],
    )
    web.add_url_rule("/account/password", "change_password", change_password, methods=["POST"])
    web.add_url_rule("/account/tokens", "add_token", add_token, methods=["POST"])
    web.add_url_rule(
        "/account/tokens/<int:token_id>/revoke", "revoke_token", revoke_token, methods=["POST"]
    )


def account() -> str:
    return _page()


def add_credential() -> Any:
    """Keep with what the user logs in to a git host."""
    form = CredentialForm()
    login, secret = (form.login.data or "").strip(), form.secret.data or ""
    try:
        _check_credential(form.host.data or "", login, secret)
        git_credentials.keep(
            service().engine,
            user().id,
            host=form.host.data,
            login=login,
            sealed=sealing.seal(SecretStr(secret), service().settings.service),
        )
    except InvalidRequest as error:
        add_problems(form, error.problems)
        form.secret.data = None
        return _page(credential_form=form), 400
    record_audit_event("git credential", form.host.data)
    flash("The credential is kept.", "success")
    return redirect(url_for("web.account"))


def remove_credential(credential_id: int) -> AnyResponse:
    if not git_credentials.remove(service().engine, user().id, credential_id):
        raise Missing("There is no such credential.")
    record_audit_event("remove git credential", str(credential_id))
    flash("The credential is removed.", "success")
    return redirect(url_for("web.account"))


def _check_credential(host: str, login: str, secret: str) -> None:
    """Raise `InvalidRequest` with every wrong field."""
    problems = []
    if host not in git_hosts():
        problems.append(FieldProblem("host", "is not allowed here", "choose one of the list"))
    if not re.fullmatch(r"[!-9;-~]{1,100}", login):
        problems.append(FieldProblem("login", "is no user's name", "write it as the host knows it"))
    if not re.fullmatch(r"[!-~]{1,500}", secret):
        hint = "write it without blanks"
        problems.append(FieldProblem("secret", "is no password or token", hint))
    if problems:
        raise InvalidRequest(problems)


def change_password() -> Any:
    """Change the password: all sessions end, and this browser begins another."""
    if not may_change_password():
        raise Missing("There is no such page.")
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


def may_change_password() -> bool:
    """Return whether the user has a password, and may log in with it."""
    return user().has_password and service().authenticator.takes_passwords


def add_token() -> Any:
    """Make a token and show it, this once: no session and no address holds it."""
    form = TokenForm()
    if not form.validate():
        return _page(token_form=form), 400
    days = int(form.life.data) if form.life.data else None
    try:
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
    credential_form: CredentialForm | None = None,
    token: str = "",
) -> str:
    return render_template(
        "account.html",
        password_form=(password_form or PasswordForm(formdata=None))
        if may_change_password()
        else None,
        subjects=subjects.of_user(service().engine, user().id),
        groups=groups.of_user(service().engine, user().id),
        token=token,
        credential_form=credential_form or CredentialForm(formdata=None),
        credentials=git_credentials.of_user(service().engine, user().id),
        git_hosts=git_hosts(),
        token_form=token_form or TokenForm(formdata=None),
        tokens=accounts.tokens_of(service().engine, user().id),
    )
