"""Errors of the service beside those of the library; `problems` turns them into answers."""

from __future__ import annotations

from image_builder.errors import (
    LimitReached,
    NotFound,
    UserError,
)


class Forbidden(UserError):
    """The user is known, and may not do this."""


class Missing(NotFound):
    """There is no such thing for this user."""


class TooManyFailures(LimitReached):
    """Somebody fails to log in again and again, and has to wait."""

    def __init__(self, message: str = "Logging in failed too often.") -> None:
        super().__init__(message, hint="Wait some minutes, then try again.")
