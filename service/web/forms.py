"""Share what several pages need of forms."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flask import request
from flask_login import current_user
from wtforms import SelectChoice

from image_builder.errors import CicError, FieldProblem
from service.db import audit_trail
from service.web.session import service

_REST_HINT = re.compile(r" ?GET /\S{0,80} lists [^.]*")
"""What a program would ask; on pages there are lists."""

_log = logging.getLogger(__name__)


def options(names: Mapping[str, str]) -> list[SelectChoice]:
    """Return the choices of a select field: value to what is shown."""
    return [SelectChoice(value, label) for value, label in names.items()]


def record_audit_event(action: str, subject: str = "", name: str | None = None) -> None:
    """Record who did what.

    An action that is done does not fail because it cannot be recorded.
    """
    who = name or (current_user.name if current_user.is_authenticated else None)
    try:
        audit_trail.record_audit_event(
            service().engine, user=who, action=action, subject=subject, address=request.remote_addr
        )
    except CicError as error:
        _log.error("%s of %s by %s is not noted: %s", action, subject, who, error)


def add_problems(
    form: Any, problems: Iterable[FieldProblem], names: Any = None
) -> list[FieldProblem]:
    """Show problems at the fields of a form that they concern, and return the others.

    `names` maps a problem's field to the form's, where they differ.
    """
    left = []
    for problem in problems:
        hint = _REST_HINT.sub("", problem.hint).rstrip(". ")
        name = (names or {}).get(problem.field, problem.field)
        if name in form and name != "csrf_token":
            form[name].errors = [
                *form[name].errors,
                " ".join(map(_sentence, filter(None, (problem.problem, hint)))),
            ]
        else:
            left.append(problem)
    return left


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def page_number() -> int:
    """Return which page of a list is asked for."""
    text = request.args.get("page", "1")
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) < 8 and int(text) else 1


def recaptcha_keys() -> tuple[str, str] | None:
    """Return the keys of the captcha provider; None where the service asks its own questions."""
    settings = service().settings.service
    if settings.captcha_web_site_key and settings.captcha_site_key is not None:
        return settings.captcha_web_site_key, settings.captcha_site_key.get_secret_value()
    return None


def captcha_hosts() -> tuple[str, ...]:
    """Return the hosts that the captcha provider's script uses; none without a provider."""
    return service().settings.service.captcha_hosts if recaptcha_keys() else ()
