"""What only the service can refuse; everything else is in `image_builder.errors`."""

from __future__ import annotations

from image_builder.errors import ErrorCode, UserError


class Forbidden(UserError):
    """The user is known, and may not do this."""


class QuotaExceeded(UserError):
    """The user has as much as one user may have; the message says of what."""

    code = ErrorCode.QUOTA_EXCEEDED


class AlreadyEnded(UserError):
    """The build has ended, and what was asked for needs one that has not."""
