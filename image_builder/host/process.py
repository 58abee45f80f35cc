"""Starts every process of the service; no other module does.

Arguments are lists and never pass a shell. A process gets a group of its own, a closed or given
standard input, and an environment without the service's own settings. Its output is streamed line
by line with secrets masked. Success is the exit code. A process ends with its whole group and with
every descendant that left the group for a session of its own; if this process is killed, the guard
does the same.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import IO, Protocol

from pydantic import SecretStr

from image_builder.errors import (
    CicError,
    ErrorCode,
    Interrupted,
    LimitReached,
    ToolMissing,
)
from image_builder.host import process_guard
from image_builder.host.cancellation import CancelToken
from image_builder.host.secrets import Secret, masked_values, redactor

LineSink = Callable[[str], None]
TAIL_LINES = 60
MAX_LINE_BYTES = 16 * 1024
GRACE_S = 2.0
ORPHAN_S = 10.0
TICK_S = 0.1
KILLED_BY_SIGNAL = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
"""Exit codes of processes that were ended from outside; a process that fails has others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Describes a process to start.

    `name` is how messages call it; `env` is added to the inherited environment.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    stdin: bytes | Secret | None = None
    secrets: tuple[Secret, ...] = ()
    timeout_s: float | None = None
    quiet_timeout_s: float | None = None
    max_stdout_bytes: int | None = None
    """The limit of captured output; a process that prints more is ended."""

    def __str__(self) -> str:
        return shlex.join(self.argv)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completed:
    """Describes a process that ended with exit code 0; `stdout` is empty unless it was captured."""

    tail: tuple[str, ...]
    stdout: bytes = b""


class ProcessFailed(CicError):
    """A process ended with an exit code other than 0; its caller decides whose fault that is."""

    code = ErrorCode.BUILD_STEP_FAILED

    def __init__(self, command: Command, exit_code: int, tail: Sequence[str]) -> None:
        how = (
            f"was ended by signal {-exit_code}"
            if exit_code < 0
            else f"ended with exit code {exit_code}"
        )
        last = next((line for line in reversed(tail) if line.strip()), "")
        super().__init__(f"{command.name} {how}." + (f" Its last line: {last}" if last else ""))
        self.command = command
        self.exit_code = exit_code
        self.tail = tuple(tail)


class Runner(Protocol):
    """Runs a command; the real runner is `run`, and tests may pass another."""

    def __call__(
        self,
        command: Command,
        *,
        on_line: LineSink | None = None,
        cancel: CancelToken | None = None,
        capture_stdout: bool = False,
    ) -> Completed: ...


def run(
    command: Command,
    *,
    on_line: LineSink | None = None,
    cancel: CancelToken | None = None,
    capture_stdout: bool = False,
) -> Completed:
    """Run a command to its end and return how it went.

    `on_line` receives every line of its output (standard error alone when `capture_stdout`). Raises
    `ToolMissing`, `ProcessFailed`, `Interrupted`, `LimitReached` (either timeout) or `Cancelled`.
    """
    watch = _Watch(command, on_line, cancel)
    with started(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if capture_stdout else subprocess.STDOUT,
    ) as process:
        captured = watch.follow(process, capture_stdout)
        exit_code = process.wait()
    if cancel is not None:
        cancel.check()
    if exit_code in KILLED_BY_SIGNAL:
        raise Interrupted(command.name)
    if exit_code != 0:
        raise ProcessFailed(command, exit_code, watch.tail)
    return Completed(tail=tuple(watch.tail), stdout=captured)


@contextlib.contextmanager
def started(
    command: Command,
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a group of its own, and end the whole group when the block is left.

    This is the low-level half of `run`, for pipelines of several processes. Raises `ToolMissing`.
    """
    given = _stdin_bytes(command.stdin)
    mark = f"{process_guard.owner_of(os.getpid())}.{token_hex(16)}"
    try:
        process = subprocess.Popen(
            command.argv,
            cwd=command.cwd,
            env=child_environment(os.environ, command.env) | {process_guard.MARK: mark},
            stdin=subprocess.PIPE
            if given is not None
            else (stdin if stdin is not None else subprocess.DEVNULL),
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        if command.cwd is not None and not command.cwd.is_dir():
            raise
        raise ToolMissing(
            f"The program {command.argv[0]} is not installed.",
            hint="Install it, or see docs/operate.md for what the service needs.",
        ) from error
    except PermissionError as error:
        raise ToolMissing(
            f"The program {command.argv[0]} is not executable for this user."
        ) from error
    _guard.watch(process.pid, mark)
    try:
        if given is not None:
            _feed(process, given)
        yield process
    finally:
        _end_group(process)
        process_guard.end_marked(mark)
        _guard.forget(process.pid)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def child_environment(own: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Return a child's environment: `own` without the service's settings, and `added`.

    The settings (`CIC_…`) may be secrets.
    """
    return {key: value for key, value in own.items() if not key.startswith("CIC_")} | dict(added)


class _Watch:
    """Follows one process's output: lines to the sink, time against the limits."""

    def __init__(
        self, command: Command, on_line: LineSink | None, cancel: CancelToken | None
    ) -> None:
        self.command = command
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_line = on_line
        self._cancel = cancel
        self._redact = redactor(command.secrets)
        self._longest_secret = max(map(len, masked_values(command.secrets)), default=0)
        self._after_return = False
        self._begin = self._last_output = time.monotonic()
        self._exit_seen: float | None = None

    def follow(self, process: subprocess.Popen[bytes], capture_stdout: bool) -> bytes:
        """Read until every stream has ended; returns what was captured of standard output."""
        captured = bytearray()
        partial = bytearray()
        with selectors.DefaultSelector() as selector:
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map() and not self._orphaned(process):
                for key, _ in selector.select(TICK_S):
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    elif capture_stdout and key.fileobj is process.stdout:
                        captured += chunk
                        self._check_captured(len(captured))
                    else:
                        self._take(partial, chunk)
                    self._last_output = time.monotonic()
                self._check_limits()
        if partial:
            self._emit(bytes(partial))
        while process.poll() is None:
            self._check_limits()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TICK_S)
        return bytes(captured)

    def _check_captured(self, size_bytes: int) -> None:
        most = self.command.max_stdout_bytes
        if most is not None and size_bytes > most:
            raise LimitReached(
                f"{self.command.name} printed more than {most} bytes and was ended.",
                code=ErrorCode.LOG_TOO_LARGE,
            )

    def _orphaned(self, process: subprocess.Popen[bytes]) -> bool:
        """Return whether the process has ended while a descendant still holds its output open.

        Such a descendant is not worth waiting for, even if it goes on writing.
        """
        if process.poll() is None:
            return False
        now = time.monotonic()
        self._exit_seen = self._exit_seen or now
        return now - self._last_output > GRACE_S or now - self._exit_seen > ORPHAN_S

    def _take(self, partial: bytearray, chunk: bytes) -> None:
        if self._after_return:  # the other half of a line end that two reads divided
            chunk = chunk.removeprefix(b"\n")
        self._after_return = chunk.endswith(b"\r")
        partial += chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        while (end := partial.find(b"\n")) >= 0:
            self._emit(bytes(partial[:end]))
            del partial[: end + 1]
        if len(partial) > MAX_LINE_BYTES + self._longest_secret:
            self._emit_begin(partial)

    def _emit_begin(self, partial: bytearray) -> None:
        """Emit an endless line in pieces, keeping at its end what could begin a secret."""
        text = self._redact(partial.decode("utf-8", "surrogateescape"))
        cut = len(text) - max(self._longest_secret - 1, 0)
        self._emit(text[:cut].encode("utf-8", "surrogateescape"))
        partial[:] = text[cut:].encode("utf-8", "surrogateescape")

    def _emit(self, raw: bytes) -> None:
        line = self._redact(raw.decode("utf-8", "replace"))
        self.tail.append(line)
        if self._on_line is not None:
            self._on_line(line)

    def _check_limits(self) -> None:
        if self._cancel is not None:
            self._cancel.check()
        command, now = self.command, time.monotonic()
        if command.timeout_s is not None and now - self._begin > command.timeout_s:
            raise LimitReached(
                f"{command.name} took longer than {command.timeout_s:.0f} s and was ended."
            )
        if (
            command.quiet_timeout_s is not None
            and now - self._last_output > command.quiet_timeout_s
        ):
            raise LimitReached(
                f"{command.name} wrote nothing for {command.quiet_timeout_s:.0f} s and was ended.",
                code=ErrorCode.QUIET_TIMEOUT,
            )


def _stdin_bytes(stdin: bytes | Secret | None) -> bytes | None:
    return stdin.get_secret_value().encode() if isinstance(stdin, SecretStr) else stdin


def _feed(process: subprocess.Popen[bytes], given: bytes) -> None:
    """Write the input from a thread: a process that does not read must not block us."""

    def write() -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(given)
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()

    threading.Thread(target=write, daemon=True, name=f"stdin-{process.pid}").start()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process's group: SIGTERM first, then SIGKILL."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class _Guard:
    """Starts a small process that ends our commands if we are killed (`process_guard.py`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._marks: dict[int, str] = {}

    def watch(self, group: int, mark: str) -> None:
        with self._lock:
            self._leave_parents()
            self._marks[group] = mark
            self._send(f"+{group} {mark}\n")

    def forget(self, group: int) -> None:
        with self._lock:
            self._leave_parents()
            self._marks.pop(group, None)
            self._send(f"-{group}\n")

    def close(self) -> None:
        """Let the guard end; it ends what is still running."""
        with self._lock:
            guard, self._process = self._process, None
            if guard is not None and self._owner == os.getpid():
                assert guard.stdin is not None
                with contextlib.suppress(OSError):
                    guard.stdin.close()
                guard.wait()

    def _leave_parents(self) -> None:
        """Forget the guard and the commands of the process that this one was forked from."""
        if self._owner != os.getpid():
            self._drop()
            self._marks.clear()
            self._owner = os.getpid()

    def _send(self, message: str) -> None:
        for _ in range(2):  # a guard that was killed is replaced by one that gets the whole list
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                    message = "".join(f"+{group} {mark}\n" for group, mark in self._marks.items())
                self._write(message)
                return
            except OSError:
                self._drop()

    def _start(self) -> None:
        self._drop()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", process_guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
        )

    def _write(self, message: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(message.encode())
        self._process.stdin.flush()

    def _drop(self) -> None:
        """Close the connection to a guard that has ended, or that belongs to another process."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.poll()
            self._process = None


_guard = _Guard()

atexit.register(_guard.close)
