"""Serve the pages to log in, log out and sign up."""

from __future__ import annotations

from typing import Any

import requests
from flask import Blueprint, Response, abort, flash, redirect, render_template, request, url_for
from flask_login import current_user
from flask_wtf import FlaskForm
from werkzeug.wrappers import Response as AnyResponse
from wtforms import HiddenField, PasswordField, StringField
from wtforms.validators import EqualTo, InputRequired, Length

from image_builder.errors import InvalidRequest, Unavailable
from service.addresses import network_of
from service.db import accounts
from service.web import captchas
from service.web.forms import add_problems, recaptcha_keys, record_audit_event
from service.web.session import begin_session, end_session, safe_target, service

SIGNUP_WINDOW_S = 3600.0
MAX_SIGNUPS = 30
"""Forms sent by one address in that time, right or wrong."""


class LoginForm(FlaskForm):  # type: ignore[misc]
    name = StringField(
        "User name",
        [InputRequired("Write your user name."), Length(max=64)],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "autofocus": True},
    )
    password = PasswordField(
        "Password",
        [InputRequired("Write your password."), Length(max=1000)],
        render_kw={"autocomplete": "current-password"},
    )


class SignupForm(FlaskForm):  # type: ignore[misc]
    name = StringField(
        "User name",
        [InputRequired("Choose a name.")],
        description="Letters, digits, '.', '_', '@' and '-'.",
        render_kw={"autocomplete": "username", "autocapitalize": "none", "maxlength": 64},
    )
    password = PasswordField(
        "Password",
        [InputRequired("Choose a password.")],
        description=f"At least {accounts.MIN_PASSWORD} characters.",
        render_kw={"autocomplete": "new-password"},
    )
    repeated = PasswordField(
        "Password again",
        [EqualTo("password", "The two passwords differ.")],
        render_kw={"autocomplete": "new-password"},
    )
    captcha_id = HiddenField()
    answer = StringField(
        "The digits in the picture",
        render_kw={"autocomplete": "off", "inputmode": "numeric", "maxlength": 20},
    )


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/", "home", home)
    web.add_url_rule("/login", "login", login, methods=["GET", "POST"])
    web.add_url_rule("/logout", "logout", logout, methods=["POST"])
    web.add_url_rule("/signup", "signup", signup, methods=["GET", "POST"])
    web.add_url_rule("/captchas/<captcha_id>.png", "captcha_picture", captcha_picture)
    web.add_url_rule("/captchas/<captcha_id>.wav", "captcha_sound", captcha_sound)


def home() -> AnyResponse:
    return redirect(url_for("web.builds"))


def login() -> Any:
    target = safe_target(request.args.get("next"))
    if current_user.is_authenticated:
        return redirect(target)
    form, status = LoginForm(), 200
    if service().authenticator.takes_passwords and form.validate_on_submit():
        if _log_in(form):
            return redirect(target)
        form.password.errors = [
            "The name or the password is not right, or the account is not confirmed yet."
        ]
        status = 401
    settings = service().settings
    return render_template(
        "login.html",
        form=form if settings.oidc.local_accounts else None,
        signup_open=settings.service.signup_open and settings.oidc.local_accounts,
        openid=settings.oidc.name if settings.oidc.is_on else None,
    ), status


def _log_in(form: LoginForm) -> bool:
    name = form.name.data or ""
    if name.startswith(accounts.TOKEN_PREFIX):  # a token is not a password
        return False
    who = service().authenticator.by_credentials(
        name, form.password.data or "", request.remote_addr or ""
    )
    row = accounts.by_id(service().engine, who.id) if who is not None else None
    if row is None:
        return False
    begin_session(row)
    record_audit_event("login")
    return True


def logout() -> AnyResponse:
    if current_user.is_authenticated:
        record_audit_event("logout")
        end_session()
    return redirect(url_for("web.login"))


def signup() -> Any:
    settings = service().settings.service
    if current_user.is_authenticated:
        return redirect(url_for("web.home"))
    if not (settings.signup_open and service().authenticator.takes_passwords):
        return render_template("signup_closed.html"), 403
    form, status = SignupForm(), 200
    if request.method == "POST":
        _count_attempt()
        status = 400
        if form.validate() and _is_person(form) and _add_user(form):
            if settings.confirm_users:
                flash("Your account waits until an administrator confirms it.", "info")
                return redirect(url_for("web.login"))
            begin_session(accounts.by_name(service().engine, form.name.data))
            return redirect(url_for("web.home"))
    keys = recaptcha_keys()
    captcha_id = None if keys else captchas.ask(service().engine, request.remote_addr or "")
    form.answer.data = ""
    form.captcha_id.data = captcha_id
    return render_template(
        "signup.html",
        form=form,
        captcha_id=captcha_id,
        site_key=keys[0] if keys else None,
        script_url=settings.captcha_script_url,
    ), status


def _count_attempt() -> None:
    key = f"sign-up from {network_of(request.remote_addr or '')}"
    accounts.require_few_failures(
        service().engine, key, MAX_SIGNUPS, "Too many attempts to sign up."
    )
    accounts.note_failed_login(service().engine, key, SIGNUP_WINDOW_S)


def _is_person(form: SignupForm) -> bool:
    keys, settings = recaptcha_keys(), service().settings.service
    if keys is None:
        if captchas.is_answered(
            service().engine, form.captcha_id.data or "", form.answer.data or ""
        ):
            return True
        form.answer.errors = ["These were not the digits. Here are others."]
        return False
    try:
        if captchas.is_verified(
            settings.captcha_verify_url,
            keys[1],
            request.form.get("g-recaptcha-response", ""),
            request.remote_addr or "",
        ):
            return True
    except (requests.RequestException, ValueError) as error:
        raise Unavailable(
            "The captcha's provider does not answer.", hint="Try again in a while."
        ) from error
    form.answer.errors = ["Show that you are a person, please."]
    return False


def _add_user(form: SignupForm) -> bool:
    try:
        accounts.add_user(
            service().engine,
            form.name.data,
            form.password.data,
            is_confirmed=not service().settings.service.confirm_users,
        )
    except InvalidRequest as error:
        add_problems(form, error.problems)
        return False
    record_audit_event("signup", name=form.name.data)
    return True


def captcha_picture(captcha_id: str) -> Response:
    png = captchas.picture(service().engine, captcha_id)
    return Response(png, mimetype="image/png") if png else abort(404)


def captcha_sound(captcha_id: str) -> Response:
    wav = captchas.sound(service().engine, captcha_id)
    return Response(wav, mimetype="audio/wav") if wav else abort(404)
