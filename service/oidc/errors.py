"""Define why a log-in through an OpenID provider does not succeed."""

from __future__ import annotations

from image_builder.errors import Unavailable
from service.errors import Forbidden


class LogInRefused(Forbidden):
    """An answer of the log-in is not accepted.

    Who logs in is told this one line, whatever is wrong; `reason` is for the operator's log, and is
    one of a few fixed texts.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__("The log-in was not accepted.", hint="Begin it again.")


class AccountClosed(Forbidden):
    """The log-in is right, and the account here is blocked or waits for its confirmation."""

    def __init__(self) -> None:
        super().__init__(
            "Your account is blocked, or waits until an administrator confirms it.",
            hint="Ask the operator of the service.",
        )


class ProviderSilent(Unavailable):
    """The provider does not answer, or not as OpenID providers do."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            "The provider of the log-in does not answer.", hint="Try again in a while."
        )
