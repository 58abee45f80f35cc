"""Runs the processes that an image's files pass on their way into squashfs.

    the image's files ─> tar_filter.py ─> tar2sqfs ──> squashfs
                             │ additions

Where the files come from is the caller's: the daemon, or whoever reads them first (`begun.py`). For
Singularity's own `build`, the second process is missing, and a tar comes of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from image_builder.errors import ErrorCode, Interrupted, LimitReached, NoSpace, ServiceError
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import KILLED_BY_SIGNAL, Command, started
from image_builder.settings import BuildSettings
from image_builder.sif import tar_filter
from image_builder.sif.docker_export import (
    ExportedImage,
    UnsuitableImage,
    export_command,
    export_socket,
)

ADDITIONS = "additions.tar"
REPORT = "report.json"
PIPE_BYTES = 1024**2
TICK_S = 0.02
SILENCE = "it wrote nothing"
FULL_BYTES = 64 * 1024**2
"""The free room below which a write that fails is taken to fail for lack of room."""


class StreamFailed(ServiceError):
    """A part of the conversion failed, and no SIF was made."""

    code = ErrorCode.CONVERSION_FAILED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """Says what is made of an image's files, and where: a squashfs, or a tar for want of a `sink`.

    `folder` is for what is written on the way; with additions, they appear in it as `ADDITIONS`.
    """

    target: Path
    sink: Command | None
    folder: Path
    has_additions: bool
    time_s: int
    newest_s: int | None = None
    """No file is newer, in seconds since 1970."""
    settings: BuildSettings
    cancel: CancelToken | None

    @contextlib.contextmanager
    def of_image(self, image: ExportedImage) -> Iterator[RunningFlow]:
        """Start the processes on what the daemon hands out of an image's files."""
        source = export_socket(image.container)
        if source is not None:
            with source, self.started(source.fileno(), source) as running:
                yield running
            return
        timeout_s = self.settings.convert_timeout_s
        command = export_command(image.container, timeout_s=timeout_s)
        with (
            (self.folder / "export.log").open("wb") as errors,
            started(command, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            assert process.stdout is not None
            with self.started(process.stdout.fileno(), process.stdout) as running:
                running.begins_with(command, process, self.folder / "export.log")
                yield running

    @contextlib.contextmanager
    def started(self, source: int, ours: Any) -> Iterator[RunningFlow]:
        """Start the processes on what a descriptor yields; `ours` is closed once they have it."""
        running = RunningFlow(self)
        with contextlib.ExitStack() as stack:
            errors = stack.enter_context(self._log(0).open("wb"))
            output: IO[bytes] | int = subprocess.PIPE
            if self.sink is None:
                output = stack.enter_context(self.target.open("wb"))
            process = stack.enter_context(
                started(self.filter, stdin=source, stdout=output, stderr=errors)
            )
            # Only the reader has it open now, so that its writer notices when the reader ends.
            ours.close()
            running.add(self.filter, process, self._log(0))
            if self.sink is not None:
                assert process.stdout is not None
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                errors = stack.enter_context(self._log(1).open("wb"))
                sink = stack.enter_context(
                    started(self.sink, stdin=process.stdout.fileno(), stdout=errors, stderr=errors)
                )
                process.stdout.close()
                running.add(self.sink, sink, self._log(1))
            yield running

    @property
    def filter(self) -> Command:
        """Return the check of the image's files; without additions, for Singularity to unpack."""
        options = ["--time", str(self.time_s)]
        if self.newest_s is not None:
            options += ["--newest", str(self.newest_s)]
        if self.has_additions:
            options += ["--additions", str(self.folder / ADDITIONS)]
        program, report = str(Path(tar_filter.__file__)), str(self.folder / REPORT)
        return Command(
            name="the check of the image's files",
            argv=(sys.executable, "-I", "-S", program, *options, "--report", report),
        )

    def _log(self, index: int) -> Path:
        return self.folder / f"stream-{index}.log"


class RunningFlow:
    """Looks after running processes until all have ended, or one has failed."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._parts: list[tuple[Command, subprocess.Popen[bytes], Path]] = []

    def add(self, command: Command, process: subprocess.Popen[bytes], log: Path) -> None:
        """Look after a process that reads what the one before writes."""
        self._parts.append((command, process, log))

    def begins_with(self, command: Command, process: subprocess.Popen[bytes], log: Path) -> None:
        """Look after the process that the first one reads from."""
        self._parts.insert(0, (command, process, log))

    @property
    def has_failed(self) -> bool:
        return any(process.poll() for _, process, _ in self._parts)

    def wait(self, metadata: Future[Any] | None) -> tar_filter.Report:
        """Wait until all processes have ended well, and return what went through.

        `metadata` is what makes the additions. Raises its error, `UnsuitableImage`, `NoSpace`,
        `LimitReached`, `StreamFailed`, `Interrupted` or `Cancelled`.
        """
        flow = self.flow
        deadline = time.monotonic() + flow.settings.convert_timeout_s
        least_free_bytes = shutil.disk_usage(flow.target.parent).free
        while True:
            free_bytes = shutil.disk_usage(flow.target.parent).free
            least_free_bytes = min(least_free_bytes, free_bytes)
            is_prepared = metadata is None or metadata.done()
            if metadata is not None and is_prepared:
                metadata.result()
            states = [process.poll() for _, process, _ in self._parts]
            if any(states):
                self._raise(least_free_bytes)
            if all(state == 0 for state in states) and is_prepared:
                return tar_filter.Report(**json.loads((flow.folder / REPORT).read_text("utf-8")))
            if time.monotonic() > deadline:
                raise LimitReached(
                    f"The conversion took longer than {flow.settings.convert_timeout_s:.0f} s."
                )
            if flow.cancel is None:
                time.sleep(TICK_S)
            elif flow.cancel.wait(TICK_S):
                flow.cancel.check()

    def _raise(self, least_free_bytes: int) -> None:
        """Raise the first cause of a failure.

        A writer that lost its reader is a consequence: the reader has the cause.
        """
        time.sleep(TICK_S)
        for command, process, _ in self._parts:
            if process.poll() in KILLED_BY_SIGNAL:
                raise Interrupted(command.name)
        for command, process, log in self._parts:
            if command == self.flow.filter and process.returncode == tar_filter.EXIT_UNFIT:
                raise UnsuitableImage(_tail(log))
        command, process, log = [part for part in self._parts if part[1].returncode][-1]
        text = _tail(log)
        # On a full disk, the log of a program may be empty, too.
        if least_free_bytes < FULL_BYTES and (
            any(said in text for said in ("I/O error", "No space left")) or text == SILENCE
        ):
            raise NoSpace(
                "The disk is full: the SIF could not be written.",
                hint="Free some room in tmp_folder.",
            )
        raise StreamFailed(
            f"The image could not be converted: {command.name} ended with exit code "
            f"{process.returncode}: {text}"
        )


def squashfs_command(
    target: Path, level: int | None, settings: BuildSettings, *, time_s: int
) -> Command:
    """Return the command that makes a squashfs file of a tar on standard input.

    It fails on an entry of an unknown kind.
    """
    argv = ["tar2sqfs", "--quiet", "--force", "--no-skip", "--compressor", settings.sif_compressor]
    if level is not None:
        argv += ["--comp-extra", f"level={level}"]
    return Command(
        name="tar2sqfs",
        argv=(*argv, str(target)),
        env={"SOURCE_DATE_EPOCH": str(time_s)},
        timeout_s=settings.convert_timeout_s,
    )


def _tail(log: Path) -> str:
    lines = log.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
    return "; ".join(lines[-3:]) or SILENCE
