"""Separate accepting work from doing it: a run's id goes through, and nothing else.

The database is the truth: which runs wait, whose they are, which are to stop. An executor only
wakes the workers, so a call that is lost costs a second, and no run.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import filelock

from config.loading import PROJECT
from image_builder.errors import ServiceError
from image_builder.host import file_leases

WAKE, STOP = b"wake", b"stop"
WATCH_EVERY_S = 1.0
START_TIMEOUT_S = 120.0
"""How long a pool may take to import what it needs. On a host that builds keep busy that is long, and
one that is ended too soon is started again for ever.
"""
LISTEN_TIMEOUT_S = 3.0
"""How long a pool that was started may take to listen. One that was killed meanwhile is missed
after that.
"""
BEGINNING_S = 5.0
"""How long a pool may take to listen that is to be stopped."""

_log = logging.getLogger(__name__)


class Executor(Protocol):
    """Gets runs worked on."""

    def submit(self, run_id: str) -> None:
        """Announce a new run."""

    def cancel(self, run_id: str) -> None:
        """Announce that a run is to stop, which the database records already."""

    def shutdown(self) -> None:
        """Stop: no run will be submitted any more."""


class RunFolder:
    """The folder where the processes of one machine's service meet: locks, and the pool's socket.

    The path of a Unix socket may have 107 characters only, so it is reached through an open folder.
    """

    def __init__(self, tmp_folder: Path) -> None:
        self.path = tmp_folder / "run"
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def _short(self) -> Iterator[str]:
        descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{descriptor}/pool.sock"
        finally:
            os.close(descriptor)

    def tell_pool(self, message: bytes) -> bool:
        """Send the pool a message. Returns False when no pool listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, self._short() as address:
            sender.setblocking(False)
            try:
                sender.sendto(message, address)
            except BlockingIOError:  # it has many unread already
                return True
            except OSError:
                return False
        return True

    def listen(self) -> socket.socket:
        """Open the pool's end of the socket. Only the holder of the pool's lock may call this."""
        (self.path / "pool.sock").unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with self._short() as address:
            listener.bind(address)
        return listener

    def pool_lock(self) -> filelock.FileLock:
        """Return the lock that the one pool of this machine holds."""
        return filelock.FileLock(self.path / "pool.lock", mode=0o600)

    def hold_web_lock(self) -> int:
        """Announce that a web process runs, until the descriptor is closed."""
        descriptor = os.open(self.path / "web.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def has_web_process(self) -> bool:
        """Return whether any web process runs."""
        return file_leases.is_held(self.path / "web.lock")


class PoolProcess:
    """The machine's pool in a process of its own (`service.workers.pool`).

    Any web process that misses it starts it, and it outlives a web process that is replaced or
    killed. Call `start` before the first request.
    """

    def __init__(self, tmp_folder: Path) -> None:
        self._folder = RunFolder(tmp_folder)
        self._web_lock: int | None = None
        self._stopped = threading.Event()
        self._missing = threading.Event()

    def start(self) -> None:
        """Announce that this web process runs, and start a pool if there is none."""
        self._web_lock = self._folder.hold_web_lock()
        self._missing.set()
        threading.Thread(target=self._watch, name="pool-watch", daemon=True).start()

    def submit(self, run_id: str) -> None:
        self._wake()

    def cancel(self, run_id: str) -> None:
        self._wake()

    def require_pool(self, patience_s: float = BEGINNING_S) -> None:
        """Raise `ServiceError` when no pool listens; one that is just beginning is waited for."""
        deadline = time.monotonic() + patience_s
        while not self._folder.tell_pool(WAKE):
            self._missing.set()
            if time.monotonic() > deadline:
                raise ServiceError(
                    "No build pool is at work.",
                    hint="It is started by itself; pool.log in the logs folder says why it ended.",
                )
            time.sleep(0.1)

    def shutdown(self) -> None:
        """Stop watching. The pool ends by itself when no web process is left."""
        self._stopped.set()
        self._missing.set()
        if self._web_lock is not None:
            os.close(self._web_lock)
            self._web_lock = None

    def _wake(self) -> None:
        if not self._folder.tell_pool(WAKE):
            self._missing.set()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            if not self._folder.tell_pool(WAKE):
                try:
                    start_pool(self._folder)
                except OSError:
                    _log.exception("the build pool does not start")
            self._missing.clear()
            self._missing.wait(WATCH_EVERY_S)


def start_pool(folder: RunFolder) -> None:
    """Start the pool's process unless another process does.

    Returns when the pool listens, or after a while.
    """
    try:
        with filelock.FileLock(folder.path / "start.lock", timeout=0, mode=0o600):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    [_python(), "-m", "service.workers.pool", "--detach"],
                    cwd=PROJECT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    timeout=START_TIMEOUT_S,
                )
            deadline = time.monotonic() + LISTEN_TIMEOUT_S
            while not folder.tell_pool(WAKE) and time.monotonic() < deadline:
                time.sleep(0.1)
    except filelock.Timeout:
        pass


def stop_pool_if_last(tmp_folder: Path, timeout_s: float) -> bool:
    """Stop the pool unless another web process still needs it; return True when it has gone."""
    folder = RunFolder(tmp_folder)
    deadline = time.monotonic() + BEGINNING_S
    while folder.has_web_process() or not folder.tell_pool(STOP):
        if folder.has_web_process() or time.monotonic() > deadline:
            return False
        time.sleep(0.2)  # it may be just beginning
    try:
        with folder.pool_lock().acquire(timeout=timeout_s):
            return True
    except filelock.Timeout:
        return False


def _python() -> str:
    """This environment's interpreter; inside Apache, `sys.executable` is not one."""
    own = Path(sys.prefix) / "bin" / "python3"
    return str(own) if own.exists() else sys.executable
