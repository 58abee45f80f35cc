"""Defines one tree of errors: whose fault it is, which code it has, what to do next.

    CicError
    ├── UserError                the request or what it names has to change
    │   ├── InvalidRequest       fields that are wrong, all of them at once
    │   ├── NotFound             a workflow, step, version or image that does not exist
    │   ├── BadDescription       eflows4hpc.yaml: file and line
    │   └── BuildFailed          a step inside the image build failed
    ├── ServiceError             the operator, or time, has to change something
    │   ├── Unavailable          something is unreachable right now: worth another try
    │   ├── Interrupted          a program of ours was ended from outside: worth another try
    │   ├── Misconfigured        a setting is missing or wrong
    │   ├── ToolMissing          a program is not installed
    │   └── NoSpace              a disk is full
    ├── LimitReached             a time, size or count limit ended the work
    └── Cancelled                a user or the service ended the work

`message` says what happened, `hint` what to do next; both are shown to users, so neither may
contain a secret.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
from collections.abc import Sequence


class ErrorCode(str, enum.Enum):
    """Lists every cause of an error, for clients to branch on; the list is closed."""

    BAD_REQUEST = "BAD_REQUEST"
    NOT_FOUND = "NOT_FOUND"
    BAD_DESCRIPTION = "BAD_DESCRIPTION"
    CONFLICT = "CONFLICT"
    COMPILER_TOO_OLD = "COMPILER_TOO_OLD"
    TARGET_NOT_EXECUTABLE = "TARGET_NOT_EXECUTABLE"
    CONCRETIZATION_FAILED = "CONCRETIZATION_FAILED"
    FETCH_FAILED = "FETCH_FAILED"
    COMPILE_FAILED = "COMPILE_FAILED"
    APT_FAILED = "APT_FAILED"
    PIP_FAILED = "PIP_FAILED"
    POST_INSTALL_FAILED = "POST_INSTALL_FAILED"
    BUILD_STEP_FAILED = "BUILD_STEP_FAILED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TOO_MANY_PROCESSES = "TOO_MANY_PROCESSES"
    NO_SPACE = "NO_SPACE"
    TIMEOUT = "TIMEOUT"
    TOTAL_TIMEOUT = "TOTAL_TIMEOUT"
    QUIET_TIMEOUT = "QUIET_TIMEOUT"
    BUILD_TIMEOUT = "BUILD_TIMEOUT"
    PUSH_TIMEOUT = "PUSH_TIMEOUT"
    CONVERSION_TIMEOUT = "CONVERSION_TIMEOUT"
    LOG_TOO_LARGE = "LOG_TOO_LARGE"
    TARGET_MISMATCH = "TARGET_MISMATCH"
    SMOKE_FAILED = "SMOKE_FAILED"
    VULNERABLE = "VULNERABLE"
    SCAN_FAILED = "SCAN_FAILED"
    PUSH_FAILED = "PUSH_FAILED"
    CONVERSION_FAILED = "CONVERSION_FAILED"
    CANCELLED = "CANCELLED"
    LOST_WORKER = "LOST_WORKER"
    INTERRUPTED = "INTERRUPTED"
    WORKFLOW_REGISTRY_UNAVAILABLE = "WORKFLOW_REGISTRY_UNAVAILABLE"
    CATALOGUE_UNAVAILABLE = "CATALOGUE_UNAVAILABLE"
    BASE_IMAGE_UNAVAILABLE = "BASE_IMAGE_UNAVAILABLE"
    DOCKER_UNAVAILABLE = "DOCKER_UNAVAILABLE"
    IMAGE_REGISTRY_UNAVAILABLE = "IMAGE_REGISTRY_UNAVAILABLE"
    TOOL_MISSING = "TOOL_MISSING"
    MISCONFIGURED = "MISCONFIGURED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    INTERNAL = "INTERNAL"


MAX_TEXT = 8000
"""Of a message, a hint or a warning, in characters."""


@dataclasses.dataclass(frozen=True)
class FieldProblem:
    """Describes one wrong field of a request.

    `field` is its dotted path (`machine.platform`), `hint` says what to write instead.
    """

    field: str
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" + (f" ({self.hint})" if self.hint else "")


def bounded(text: str) -> str:
    """Return a text that is kept and shown, cut where it is too long: much of it is others' words."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} [...]"


class CicError(Exception):
    """Carries a message for people, a code for programs and a hint for the next step."""

    code: ErrorCode = ErrorCode.INTERNAL

    def __init__(self, message: str, *, hint: str = "", code: ErrorCode | None = None) -> None:
        self.message = bounded(message)
        self.hint = bounded(hint)
        super().__init__(self.message)
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return with_hint(self.message, self.hint)


def with_hint(problem: str, hint: str) -> str:
    """Return a problem and what to do next as sentences, with a full stop between them."""
    if not hint or not problem:
        return problem or hint
    return f"{problem} {hint}" if problem[-1] in ".!?:" else f"{problem}. {hint}"


class UserError(CicError):
    """The request, or what it names, has to change."""

    code = ErrorCode.BAD_REQUEST


class InvalidRequest(UserError):
    """The request has wrong fields; `problems` lists every one of them."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("The request is not valid: " + "; ".join(map(str, self.problems)))


class NotFound(UserError):
    """Something named does not exist; `field` is the request's field that named it, if one did."""

    code = ErrorCode.NOT_FOUND

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class BadDescription(UserError):
    """A step's description cannot be used.

    `file` is relative to the step's folder, `line` counts from 1.
    """

    code = ErrorCode.BAD_DESCRIPTION

    def __init__(
        self,
        problem: str,
        *,
        file: str,
        line: int | None = None,
        hint: str = "",
        code: ErrorCode | None = None,
    ) -> None:
        where = file if line is None else f"{file}, line {line}"
        super().__init__(f"{where}: {problem}", hint=hint, code=code)
        self.file = file
        self.line = line


class BuildFailed(UserError):
    """A step of the image build failed.

    `step` names it (`spack install`), `package` the failing package if there is one, and
    `excerpt` holds the lines of the log that matter.
    """

    code = ErrorCode.BUILD_STEP_FAILED

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode | None = None,
        hint: str = "",
        step: str = "",
        package: str = "",
        excerpt: Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.step = step
        self.package = package
        self.excerpt = tuple(excerpt)

    @property
    def details(self) -> tuple[str, ...]:
        """The lines to show with the message: the excerpt, or none if it only repeats the message."""
        says_more = any(line.strip() not in self.message for line in self.excerpt)
        return self.excerpt if says_more else ()


class ServiceError(CicError):
    """The operator, or time, has to change something; the user's request may be fine."""


class Unavailable(ServiceError):
    """Something is unreachable or restarting; the same call may work later, and is retried."""


class Interrupted(ServiceError):
    """A program that the service started was ended from outside.

    A person did so, or the kernel when memory was short.
    """

    code = ErrorCode.INTERRUPTED

    def __init__(self, program: str) -> None:
        super().__init__(
            f"{program} was ended from outside.",
            hint="Try again; if it stays, the operator has to look whether the machine's memory runs out.",
        )


class Misconfigured(ServiceError):
    """A setting is missing or wrong; the message names its key and says what to write."""

    code = ErrorCode.MISCONFIGURED


class ToolMissing(ServiceError):
    """A program that the service needs is not installed or not executable."""

    code = ErrorCode.TOOL_MISSING


class NoSpace(ServiceError):
    """A disk has less room than the next step needs."""

    code = ErrorCode.NO_SPACE

    @staticmethod
    def is_meant_by(error: BaseException) -> bool:
        """Return whether an error says that a disk, or a quota on it, is full."""
        return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class LimitReached(CicError):
    """A limit of the service (time, quiet time, log size) ended the work."""

    code = ErrorCode.TIMEOUT


class Cancelled(CicError):
    """The work was ended on request."""

    code = ErrorCode.CANCELLED
