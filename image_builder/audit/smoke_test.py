"""Runs the description's smoke command in the finished image: the step's own test of it.

It runs as a user of the image would run it: by an ordinary user, through the entry point, in the
step's folder, on a file system that cannot be written to but for `/tmp`. It has no network, no
rights, and limited memory and processes.
"""

from __future__ import annotations

from collections.abc import Sequence

from image_builder.docker.container import DOCKERS_OWN_FAILURE, Container, run_container, run_probe
from image_builder.docker.daemon import BaseImageUnavailable
from image_builder.errors import BuildFailed, CicError, ErrorCode, LimitReached, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import LineSink, ProcessFailed, Runner
from image_builder.request import host_cpu
from image_builder.request.build_request import Machine

ORDINARY_USER = "1000:1000"
MEMORY_BYTES = 4 * 1024**3
MAX_PROCESSES = 1024
EXCERPT_LINES = 20
PROBE_TIMEOUT_S = 60.0
"""Time limit of a shell that does nothing, be it emulated."""


def smoke_container(
    image: str,
    words: Sequence[str],
    *,
    platform: str,
    step_id: str,
    timeout_s: float,
    cpus: float,
    cgroup: str | None,
) -> Container:
    """Return the container of a description's smoke command."""
    return Container(
        name="smoke command",
        image=image,
        platform=platform,
        program=tuple(words),
        through_entrypoint=True,
        timeout_s=timeout_s,
        memory_bytes=MEMORY_BYTES,
        pids=MAX_PROCESSES,
        cpus=cpus,
        cgroup=cgroup,
        options=(
            f"--user={ORDINARY_USER}",
            "--read-only",
            "--tmpfs=/tmp:rw,exec,mode=1777",
            "--env=HOME=/tmp",
            f"--workdir=/{step_id}",
        ),
    )


def incompatibility(
    image: str, machine: Machine, *, runner: Runner, cancel: CancelToken, cgroup: str | None
) -> str:
    """Return why this host cannot run what is in the image; empty when it can."""
    warning = host_cpu.host_warning(machine.target)
    if warning is not None and not host_cpu.is_emulated(machine.target):
        return warning
    try:
        run_probe(
            image,
            machine.platform,
            ("/bin/sh", "-c", ":"),
            timeout_s=PROBE_TIMEOUT_S,
            cgroup=cgroup,
            runner=runner,
            cancel=cancel,
        )
    except BaseImageUnavailable as error:
        return error.message
    return ""


def run_smoke(
    image: str,
    words: Sequence[str],
    *,
    machine: Machine,
    step_id: str,
    timeout_s: float,
    cpus: float,
    cgroup: str | None,
    runner: Runner,
    on_line: LineSink,
    cancel: CancelToken,
) -> None:
    """Run the smoke command to its end.

    Raises `BuildFailed` (`SMOKE_FAILED`) when it fails or takes too long.
    """
    container = smoke_container(
        image,
        words,
        platform=machine.platform,
        step_id=step_id,
        timeout_s=timeout_s,
        cpus=cpus,
        cgroup=cgroup,
    )
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        del lines[:-EXCERPT_LINES]
        on_line(line)

    try:
        run_container(container, runner=runner, on_line=keep, cancel=cancel)
    except ProcessFailed as error:
        if error.exit_code == DOCKERS_OWN_FAILURE:
            raise Unavailable(
                f"The smoke command could not be started: {error.message}",
                code=ErrorCode.DOCKER_UNAVAILABLE,
            ) from error
        raise _failed(error, lines) from error
    except LimitReached as error:
        raise (_failed(error, lines) if error.code is ErrorCode.TIMEOUT else error) from error


def _failed(error: CicError, lines: Sequence[str]) -> BuildFailed:
    return BuildFailed(
        f"The description's smoke command failed: {error.message}",
        code=ErrorCode.SMOKE_FAILED,
        step="smoke",
        excerpt=lines,
        hint="It is run by an ordinary user, without network, and may write in /tmp alone.",
    )
