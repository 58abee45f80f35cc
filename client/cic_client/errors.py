"""Define what can go wrong, each with the exit status that `cic` ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cic_client.models import Problem


class ClientError(Exception):
    """Something that the client could not do; its text is for people."""

    exit_status = 1


class BadInput(ClientError):
    """What the caller gave cannot be sent."""

    exit_status = 2


class Unreachable(ClientError):
    """The service does not answer, or the connection to it breaks."""

    exit_status = 3


class WrongChecksum(ClientError):
    """A downloaded file is not the one that the service names."""

    exit_status = 5


class UnexpectedAnswer(ClientError):
    """The answer is none that a service of this kind gives."""

    @classmethod
    def because(cls, why: str) -> UnexpectedAnswer:
        """Return the error for an answer that cannot be read."""
        return cls(
            f"The answer is not what a service of images sends ({why}). Is the address right?"
        )


class Refused(ClientError):
    """The service refuses the call; `problem` says why."""

    def __init__(self, status: int, problem: Problem) -> None:
        self.status = status
        self.problem = problem
        super().__init__("\n".join(_lines(status, problem)))


def _lines(status: int, problem: Problem) -> list[str]:
    lines = [f"{problem.title or 'The service refuses that'} (HTTP {status})"]
    only = problem.errors[0].problem if len(problem.errors) == 1 else None
    if problem.detail and problem.detail != only:
        lines.append(f"{problem.detail} {problem.hint}".strip())
    lines += [
        f"  {wrong.field}: {wrong.problem}" + (f" ({wrong.hint})" if wrong.hint else "")
        for wrong in problem.errors
    ]
    if status == 401:
        lines.append("Log in again with `cic login`: what is kept is not right, or has ended.")
    return lines
