"""Reads from buildx's plain progress log which step failed, and what that step wrote. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

MAX_LINE = 2000

_HEADER = re.compile(r"#(?P<id>\d+) (?P<name>\[[^\]]+\] .+|exporting to .+|pushing .+)\Z")
_OUTPUT = re.compile(r"#(?P<id>\d+) (?:\d+\.\d+ (?P<timed>.*)|(?P<plain>.+))\Z")
_FAILED = re.compile(r"#(?P<id>\d+) ERROR: (?P<message>.*)\Z")
_SOLVE = re.compile(r"ERROR: (?:failed to solve: |failed to build: )?(?P<message>.+)\Z")
_PROCESS = re.compile(r'process "(?P<command>.*)" did not complete successfully: (?P<how>.*)\Z')
_EXIT_CODE = re.compile(r"exit code: (?P<code>\d+)")
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailedStep:
    """Describes the step at which a build ended.

    `name` is buildx's (`[final 2/3] RUN ...`), `message` what it said of the failure, `lines` what
    the step wrote without buildx's own marks. `exit_code` None: no program ended with one. Nothing
    failed in a step of its own (the daemon is gone): `name` is empty, and `lines` are the log's
    last ones.
    """

    name: str
    message: str
    exit_code: int | None
    lines: tuple[str, ...]

    @property
    def command(self) -> str:
        """Return the command of a RUN step as it was started, or an empty text."""
        match = _PROCESS.search(self.message)
        return match["command"] if match else ""


def failed_step(log: Sequence[str]) -> FailedStep:
    """Return the step that ended a build with the log `log`, whose beginning may be missing."""
    lines = [plain(line) for line in log]
    failure = next((match for line in reversed(lines) if (match := _FAILED.match(line))), None)
    last = next((match["message"] for line in reversed(lines) if (match := _SOLVE.match(line))), "")
    if failure is None:
        return FailedStep(
            name="", message=last, exit_code=_exit_code(last), lines=tuple(lines[-200:])
        )
    message = failure["message"] or last
    return FailedStep(
        name=_name(lines, failure["id"]),
        message=message,
        exit_code=_exit_code(message),
        lines=tuple(_output(lines, failure["id"])),
    )


def plain(line: str) -> str:
    """Return a line without colours and line ends, as it stood on the screen in the end.

    Very long lines are cut.
    """
    return _COLOUR.sub("", line[:MAX_LINE]).rstrip("\r\n").rpartition("\r")[2]


def _name(lines: Iterable[str], step: str) -> str:
    return next(
        (match["name"] for line in lines if (match := _HEADER.match(line)) and match["id"] == step),
        "",
    )


def _output(lines: Iterable[str], step: str) -> Iterable[str]:
    """Return what the step wrote.

    buildx puts its number before every line, and the seconds where a program wrote it.
    """
    header_seen = False
    for line in lines:
        match = _OUTPUT.match(line)
        if match is None or match["id"] != step or _FAILED.match(line):
            continue
        if match["timed"] is not None:
            yield match["timed"]
        elif header_seen or not _HEADER.match(line):
            yield match["plain"]
        header_seen = True


def _exit_code(message: str) -> int | None:
    match = _EXIT_CODE.search(message)
    return int(match["code"]) if match else None
