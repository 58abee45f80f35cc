"""The build pool: one process of its own for each machine, with a bounded number of builds at once.

Whoever holds `<tmp_folder>/pool.lock` is the pool. Web processes start it and look after it (`PoolKeeper`), and hold
`<tmp_folder>/web.lock` together: the pool ends when none of them is left and nothing is to be done. So a restart of the
web server never reaches a build, and the bound holds however many web processes there are.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from config.settings import Settings
from service import store
from service.models import utc_now
from service.worker import RunCancel, Worker

logger = logging.getLogger(__name__)

POLL_S = 0.25
HEARTBEAT_S = 1.0
LOST_AFTER_S = 60.0
IDLE_EXIT_S = 20.0
KEEPER_S = 2.0
SHORT_PATIENCE_S, LONG_PATIENCE_S = 2.0, 24 * 3600.0


class BuildPool:
    """Claims runs and works on them, at most `max_concurrent_builds` at once."""

    def __init__(self, settings: Settings, worker: Worker) -> None:
        self._settings = settings
        self._worker = worker
        self._slots = settings.library.build.max_concurrent_builds
        self._threads = ThreadPoolExecutor(self._slots, thread_name_prefix="build")
        self._running: dict[str, tuple[RunCancel, Future[None]]] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Ask `run` to end: no new work, and what runs gets `stop_timeout_s`."""
        self._stop.set()

    @property
    def busy(self) -> int:
        with self._lock:
            return len(self._running)

    def run(self, *, keep_going: Callable[[], bool] = lambda: True) -> None:
        """Work until `stop` is called or `keep_going` says no. Then running builds finish, or go back to the queue."""
        self._take_over()
        beat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        beat.start()
        while not self._stop.is_set() and keep_going():
            if not self._claim():
                self._stop.wait(POLL_S)
        self._stop.set()
        self._drain()
        beat.join()

    def _take_over(self) -> None:
        """Runs of this machine's earlier pools have no worker any more: only one pool holds the lock."""
        machine = self._worker.name.rsplit(":", 1)[0] + ":"
        touched = store.reconcile(dead=store.of_other_workers(machine, self._worker.name),
                                  max_attempts=self._settings.service.max_attempts)
        for run_id in touched:
            logger.warning("run of an earlier pool taken over", extra={"run": run_id})
            shutil.rmtree(self._settings.library.build.tmp_folder / "builds" / run_id, ignore_errors=True)

    def _claim(self) -> bool:
        if self.busy >= self._slots:
            return False
        try:
            run_id = store.claim_next(self._worker.name, max_active_per_user=self._settings.service
                                      .max_active_builds_per_user) if store.anything_pending() else None
        except Exception:
            logger.exception("the queue cannot be read; trying again")
            self._stop.wait(HEARTBEAT_S)
            return False
        if run_id is None:
            return False
        cancel = RunCancel()
        with self._lock:
            future = self._threads.submit(self._work, run_id, cancel)
            self._running[run_id] = (cancel, future)
        return True

    def _work(self, run_id: str, cancel: RunCancel) -> None:
        try:
            self._worker.run_build(run_id, cancel)
        except Exception:
            logger.exception("a run could not be brought to its end", extra={"run": run_id})
        finally:
            with self._lock:
                self._running.pop(run_id, None)

    def _beat(self) -> None:
        """Say that we live, hear of cancels, and find runs of workers elsewhere that do not live."""
        while not self._stop.is_set() or self.busy:
            with self._lock:
                running = {run_id: cancel for run_id, (cancel, _) in self._running.items()}
            try:
                for run_id in store.heartbeat(self._worker.name, list(running)):
                    running[run_id].cancel()
                store.reconcile(dead=store.lost_before(utc_now() - datetime.timedelta(seconds=LOST_AFTER_S)),
                                max_attempts=self._settings.service.max_attempts)
            except Exception:
                logger.exception("the heartbeat could not be written; trying again")
            time.sleep(HEARTBEAT_S)

    def _drain(self) -> None:
        end = time.monotonic() + self._settings.service.stop_timeout_s
        while self.busy and time.monotonic() < end:
            time.sleep(POLL_S)
        with self._lock:
            for cancel, _ in self._running.values():
                cancel.hand_back()
        self._threads.shutdown(wait=True)


def worker_name() -> str:
    """This process's name among workers: the machine, then the process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def serve(settings: Settings, worker: Worker) -> int:
    """Be the pool, if nobody else is. Returns the exit code of the pool's process."""
    tmp = settings.library.build.tmp_folder
    tmp.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(tmp / "pool.lock", timeout=_patience_s(tmp, settings)):
            _pid_file(tmp).write_text(json.dumps({"pid": os.getpid(), "stamp": _stamp(settings)}), "utf-8")
            pool = BuildPool(settings, worker)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: pool.stop())
            logger.info("the build pool begins", extra={"worker": worker.name})
            pool.run(keep_going=_while_wanted(tmp, pool))
            _pid_file(tmp).unlink(missing_ok=True)
            logger.info("the build pool ends", extra={"worker": worker.name})
    except Timeout:
        logger.info("another build pool runs already")
    return 0


def _patience_s(tmp: Path, settings: Settings) -> float:
    """How long to wait for the lock: a pool with other settings is draining, one with ours will stay."""
    running = _running_pool(tmp)
    return SHORT_PATIENCE_S if running is None or running["stamp"] == _stamp(settings) else LONG_PATIENCE_S


def _while_wanted(tmp: Path, pool: BuildPool) -> Callable[[], bool]:
    """True while there is a web process, or work; asked often, so it looks at the locks once a second."""
    state = {"checked": 0.0, "unwanted_since": None}

    def wanted() -> bool:
        now = time.monotonic()
        if now - state["checked"] < 1.0:
            return True
        state["checked"] = now
        if pool.busy or _web_process_lives(tmp) or store.anything_pending():
            state["unwanted_since"] = None
            return True
        state["unwanted_since"] = state["unwanted_since"] or now
        return now - state["unwanted_since"] < IDLE_EXIT_S

    return wanted


def hold_web_lock(settings: Settings) -> IO[str]:
    """Say that this web process lives, until the returned file is closed or the process ends."""
    path = settings.library.build.tmp_folder / "web.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")  # noqa: SIM115 - held for the life of the process
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _web_process_lives(tmp: Path) -> bool:
    with open(tmp / "web.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_running(settings: Settings) -> bool:
    """Whether this machine has a pool."""
    lock = FileLock(settings.library.build.tmp_folder / "pool.lock", timeout=0)
    try:
        with lock:
            return False
    except Timeout:
        return True


def ensure_running(settings: Settings) -> None:
    """Start the pool if there is none, in a session of its own."""
    if is_running(settings):
        return
    log_folder = settings.library.build.tmp_folder / "logs"
    log_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    program = Path(__file__).resolve().parent.parent / "builder_service.py"
    with open(log_folder / "pool.log", "ab") as log:
        subprocess.Popen([sys.executable, str(program), "--pool"], cwd=program.parent, stdin=subprocess.DEVNULL,
                         stdout=log, stderr=log, start_new_session=True)


def stop(settings: Settings) -> None:
    """Ask this machine's pool to end, and wait until it has."""
    running = _running_pool(settings.library.build.tmp_folder)
    if running is None or not is_running(settings):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(running["pid"], signal.SIGTERM)
    end = time.monotonic() + settings.service.stop_timeout_s + 15
    while is_running(settings) and time.monotonic() < end:
        time.sleep(0.1)


class PoolKeeper:
    """A thread of a web process that sees to it that there is a pool with our settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ended = threading.Event()
        self._web_lock = hold_web_lock(settings)
        self._retire_stale_pool()
        threading.Thread(target=self._keep, name="pool-keeper", daemon=True).start()

    def submit(self, run_id: str) -> None:
        """The pool looks for runs by itself; there only has to be one."""

    def cancel(self, run_id: str) -> None:
        """The pool sees the flag with its next heartbeat."""

    def shutdown(self) -> None:
        """Stop looking after the pool. It ends by itself, when nobody needs it."""
        self._ended.set()
        self._web_lock.close()

    def _keep(self) -> None:
        while not self._ended.is_set():
            try:
                ensure_running(self._settings)
            except OSError:
                logger.exception("the build pool cannot be started")
            self._ended.wait(KEEPER_S)

    def _retire_stale_pool(self) -> None:
        """A pool that was started with other settings finishes what it runs, and makes room for ours."""
        running = _running_pool(self._settings.library.build.tmp_folder)
        if running is not None and running["stamp"] != _stamp(self._settings) and is_running(self._settings):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running["pid"], signal.SIGTERM)


def _pid_file(tmp: Path) -> Path:
    return tmp / "pool.json"


def _running_pool(tmp: Path) -> dict[str, Any] | None:
    try:
        loaded: dict[str, Any] = json.loads(_pid_file(tmp).read_text("utf-8"))
        return loaded
    except (OSError, ValueError):
        return None


def _stamp(settings: Settings) -> str:
    """What the pool's work depends on; two web servers that differ in their ports share a pool."""
    text = f"{settings.library!r} {settings.service.database}"
    return hashlib.sha256(text.encode()).hexdigest()
