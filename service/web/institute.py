"""Serve the log-in through an OpenID provider: away to it, and back with its answer."""

from __future__ import annotations

import secrets
import time
from typing import Any

from flask import Blueprint, flash, redirect, request, session, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as AnyResponse

from image_builder.errors import CicError
from service.errors import Missing
from service.oidc import log_in
from service.oidc.errors import LogInRefused
from service.oidc.provider import Attempt, Provider
from service.web.forms import record_audit_event
from service.web.session import begin_session, safe_target, service

ATTEMPTS = "log_ins"
"""Where the browser's cookie, which is signed, keeps what it has begun: by state, newest last."""
MAX_ATTEMPTS = 3
MAX_CODE = 4096


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/login/openid", "openid", openid)
    web.add_url_rule("/login/openid/back", "openid_back", openid_back)


def openid() -> AnyResponse:
    """Send a browser to the provider."""
    target = safe_target(request.args.get("next"))
    if current_user.is_authenticated:
        return redirect(target)
    provider = _provider()
    attempt = Attempt(*(secrets.token_urlsafe(32) for _ in range(3)))
    try:
        address = provider.address_to_log_in(attempt, _redirect_uri(provider))
    except CicError as error:
        return _failed(error)
    begun = dict(list(session.get(ATTEMPTS, {}).items())[1 - MAX_ATTEMPTS :])
    begun[attempt.state] = [attempt.nonce, attempt.verifier, target, int(time.time())]
    session[ATTEMPTS] = begun
    return redirect(address)


def openid_back() -> AnyResponse:
    """Log in whom the provider sends back, or say in one line that it did not succeed."""
    provider, parts = _provider(), service()
    try:
        log_in.require_patience(parts.engine, request.remote_addr or "")
        attempt, target = _begun(request.args.get("state", ""))
        log_in.use_once(parts.engine, f"state {attempt.state}", log_in.ATTEMPT_LIFE_S)
        row = log_in.by_code(
            provider,
            parts.engine,
            code=_code(provider),
            attempt=attempt,
            redirect_uri=_redirect_uri(provider),
            is_confirmed=not parts.settings.service.confirm_users,
        )
    except CicError as error:
        return _failed(error)
    begin_session(row)
    record_audit_event("login", "openid")
    return redirect(target)


def _provider() -> Provider:
    provider = service().provider
    if provider is None:
        raise Missing("There is no such page.")
    return provider


def _begun(state: str) -> tuple[Attempt, str]:
    """Return what this browser began under a state, which is taken out of its cookie."""
    begun: dict[str, Any] = dict(session.get(ATTEMPTS, {}))
    kept = begun.pop(state, None)
    session[ATTEMPTS] = begun
    if kept is None:
        raise LogInRefused("this browser has not begun it, or has used it")
    nonce, verifier, target, at = kept
    if time.time() - at > log_in.ATTEMPT_LIFE_S:
        raise LogInRefused("it was begun too long ago")
    return Attempt(state=state, nonce=nonce, verifier=verifier), safe_target(target)


def _code(provider: Provider) -> str:
    """Return the code of the provider's answer, which is from no other provider."""
    issuer = request.args.get("iss")
    says_who = provider.metadata().authorization_response_iss_parameter_supported
    if issuer != provider.settings.issuer and (issuer is not None or says_who):
        raise LogInRefused("the answer is another issuer's")
    if "error" in request.args:
        raise LogInRefused("the provider, or who logs in, refused")
    code = request.args.get("code", "")
    if not 0 < len(code) <= MAX_CODE or not code.isascii() or not code.isprintable():
        raise LogInRefused("the answer has no code")
    return code


def _redirect_uri(provider: Provider) -> str:
    return provider.settings.redirect_uri or url_for("web.openid_back", _external=True)


def _failed(error: CicError) -> AnyResponse:
    """Say in one line that it did not succeed, and in the operator's log why."""
    log_in.note_failure(service().engine, error, request.remote_addr or "")
    flash(f"{error.message} {error.hint}".strip(), "danger")
    return redirect(url_for("web.login"))
