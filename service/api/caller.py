"""Say who makes the present call, and note what they did."""

from __future__ import annotations

import logging

from flask import request

from image_builder.errors import CicError
from service.auth import Principal, auth
from service.context import service
from service.db import audit_trail

_log = logging.getLogger(__name__)


def principal() -> Principal:
    """Return who makes the present request."""
    caller: Principal = auth.current_user()
    return caller


def note(action: str, subject: str) -> None:
    """Note who did what. What is done already does not fail because it cannot be noted."""
    try:
        audit_trail.record_audit_event(
            service().engine,
            user=principal().name,
            action=action,
            subject=subject,
            address=request.remote_addr,
        )
    except CicError as error:
        _log.error("%s of %s by %s is not noted: %s", action, subject, principal().name, error)
