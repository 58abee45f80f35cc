"""Define the service's errors, in addition to the library's; `problems` turns them into answers."""

from __future__ import annotations

import math

from image_builder.errors import (
    CicError,
    ErrorCode,
    LimitReached,
    NotFound,
    UserError,
)


class Forbidden(UserError):
    """The user is known, and is not permitted to do this."""


class WrongMediaType(UserError):
    """The body is in a form that is not taken from this kind of client; the answer is 415."""


class Missing(NotFound):
    """There is no such thing for this user."""


class TooManyRequests(LimitReached):
    """Somebody asks too often, or too many ask at once; the answer is 429.

    `retry_after_s` says when the limit ends, None where nobody knows.
    """

    def __init__(self, message: str, *, hint: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = None if retry_after_s is None else max(1, math.ceil(retry_after_s))


class TooManyFailures(TooManyRequests):
    """Somebody fails to log in again and again, and has to wait."""

    def __init__(self, retry_after_s: float, message: str = "Logging in failed too often.") -> None:
        super().__init__(
            message, hint="Wait some minutes, then try again.", retry_after_s=retry_after_s
        )


class TooOften(TooManyRequests):
    """Somebody calls more often than a minute allows."""

    def __init__(self, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"More than {limit} calls of this kind in a minute are too many.",
            hint=f"Go on in {retry_after_s} s, and ask less often.",
            retry_after_s=retry_after_s,
        )


class Busy(TooManyRequests):
    """Too many ask for the same slow thing at once; when they have their answers, nobody knows."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="Try again in a moment.")


class NameTaken(Forbidden):
    """Somebody logs in for the first time whose name is another account's here."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"Your log-in works, but {name} is another account's name here.",
            hint="If it is yours, ask the operator to link it.",
        )


RETRY_AFTER_S = 30
"""When to come back, where nothing tells better.

Quotas end when a build ends, or when its user or clean-up removes something, and what does not answer
comes back when it does: nobody knows when that is.
"""


def retry_after(error: CicError) -> dict[str, str]:
    """Return the header that says when to come back, of answers that have one."""
    if status_of(error) not in (429, 503):
        return {}
    known_s = error.retry_after_s if isinstance(error, TooManyRequests) else None
    return {"Retry-After": str(known_s or RETRY_AFTER_S)}


_STATUSES: tuple[tuple[type[CicError], int], ...] = (
    (NotFound, 404),
    (Forbidden, 403),
    (TooManyRequests, 429),
    (WrongMediaType, 415),
    (UserError, 400),
    (LimitReached, 400),
)


def status_of(error: CicError) -> int:
    """Return the HTTP status that answers an error, of REST calls and of pages."""
    if error.code is ErrorCode.QUOTA_EXCEEDED:
        return 429
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 503)
