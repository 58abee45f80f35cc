"""Take pending runs and work on them, so many at a time. One pool for each machine.

`python -m service.pool` is that process. It is in a session of its own, so that what becomes of a
web server never reaches a build, and ends when no web process is left and nothing is queued.
SIGTERM: no new work, running builds have `stop_timeout_s` to end and go back to the queue then. A
second SIGTERM: at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import filelock
from sqlalchemy.engine import Engine

from config import load_settings
from config.settings import Settings
from image_builder.docker import buildx, container
from image_builder.docker.isolation import cgroup
from image_builder.errors import CicError
from image_builder.host import process_guard
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import run as run_command
from image_builder.host.workspace import abandoned, remove_abandoned
from image_builder.request import host_cpu
from image_builder.sif import docker_export
from image_builder.store.image_store import open_images
from service import downloads
from service.cleanup import Cleanup
from service.console import log_to_stderr
from service.db import runs
from service.db.database import make_engine
from service.db.tables import Kind
from service.memory import share_arenas
from service.notices.sender import Sender
from service.version import VERSION
from service.workers import registry
from service.workers.executors import STOP, RunFolder
from service.workers.registry import DatabaseUptime, Registration
from service.workers.routing import Abilities
from service.workers.run import HAND_BACK, BuildImage, Worker

TICK_S = 1.0
HEARTBEAT_EVERY_S = 3.0
RECONCILE_EVERY_S = 15.0
SWEEP_EVERY_S = 60.0
HAND_BACK_S = 10.0
"""How long builds may take to end after the pool asked them to."""
MAX_POOL_LOG_BYTES = 16 * 1024**2
"""How long the pool's own log may be when the next pool begins; the one before it is kept."""
IDLE_S = 5.0
"""How long the pool goes on without any web process."""
ALONE_WITHOUT_DATABASE_S = 60.0
"""The same while the database does not say whether anything waits; it may be gone for good."""

_log = logging.getLogger(__name__)


def host_name(tmp_folder: Path) -> str:
    """Return the name of this machine's workers.

    Services with folders of their own are machines of their own.
    """
    return f"{platform.node()[:40]}/{zlib.crc32(str(tmp_folder.resolve()).encode()):08x}"


class BuildPool:
    """A bounded pool of threads, each working on one run, which the database chooses."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        build_image: BuildImage | None = None,
        is_one_of_many: bool = False,
    ) -> None:
        """`is_one_of_many`: there are workers elsewhere, and it takes only what is for it."""
        self._engine, self._settings = engine, settings
        self._build = settings.library.build
        self._is_one_of_many = is_one_of_many
        self._abilities: Abilities | None = None
        self._database = DatabaseUptime()
        self.host = host_name(self._build.tmp_folder)
        self.name = f"{self.host}:{os.getpid()}-{secrets.token_hex(4)}"
        more = {} if build_image is None else {"build_image": build_image}
        self._worker = Worker(name=self.name, engine=engine, settings=settings, **more)
        self._sender = Sender(engine, settings)
        self._running: dict[str, CancelToken] = {}
        self._lock = threading.Lock()
        self._wakened = threading.Event()
        self._accepting = True
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(
            self._build.max_concurrent_builds, thread_name_prefix="build"
        )
        self._loop = threading.Thread(target=self._work, name="pool", daemon=True)
        self._cleaner = threading.Thread(target=self._clean_up_often, name="clean-up", daemon=True)

    def start(self) -> None:
        """Begin to work; what earlier workers of this machine left is taken up first."""
        self._loop.start()
        self._cleaner.start()
        self._sender.start()

    def wake(self) -> None:
        """Look for new work."""
        self._wakened.set()

    def submit(self, run_id: str) -> None:
        self.wake()

    def cancel(self, run_id: str) -> None:
        with self._lock:
            token = self._running.get(run_id)
        if token is not None:
            token.cancel("The build was cancelled.")
        self.wake()

    def is_idle(self) -> bool:
        """Return whether no run is going on here."""
        with self._lock:
            return not self._running

    def shutdown(self, timeout_s: float = 0.0) -> None:
        """Take no new work, wait `timeout_s` for running builds, and queue the others again."""
        self._accepting = False
        self._wait_idle(timeout_s)
        self._end_all()
        self._sender.stop()
        self._ended.set()
        self.wake()
        self._loop.join(HAND_BACK_S)
        self._end_all()  # what the loop was just claiming
        self._tried(self._leave)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _end_all(self) -> None:
        self.hand_back()
        self._wait_idle(HAND_BACK_S)

    def _leave(self) -> None:
        registry.leave(self._engine, self.name)

    def hand_back(self) -> None:
        """Ask running builds to end and return to the queue."""
        with self._lock:
            for token in self._running.values():
                token.cancel(HAND_BACK)

    def _wait_idle(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_idle() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _work(self) -> None:
        """The loop of the pool's own thread. A database that does not answer is waited for."""
        every = {
            self._look_at_host: SWEEP_EVERY_S,
            self._reconcile: RECONCILE_EVERY_S,
            self._heartbeat: HEARTBEAT_EVERY_S,
            self._sweep: SWEEP_EVERY_S,
        }
        due = dict.fromkeys(every, 0.0)
        while not self._ended.is_set():
            for job, at in due.items():
                if time.monotonic() >= at and self._tried(job):
                    due[job] = time.monotonic() + every[job]
            self._tried(self._hear_cancels)
            self._tried(self._claim_all)
            self._wakened.wait(TICK_S)
            self._wakened.clear()

    def _tried(self, job: Callable[[], None]) -> bool:
        try:
            job()
        except CicError as error:
            _log.warning("%s: %s", job.__name__.strip("_"), error)
            return False
        except Exception:
            _log.exception("%s failed", job.__name__.strip("_"))
            return False
        return True

    def _claim_all(self) -> None:
        while self._accepting and len(self._running) < self._build.max_concurrent_builds:
            kinds = self._kinds_for_me() if self._is_one_of_many else None
            run_id = (
                None
                if kinds == ()
                else runs.claim(
                    self._engine,
                    self.name,
                    max_active_per_user=self._max_active_per_user(),
                    kinds=kinds,
                )
            )
            if run_id is None:
                return
            token = CancelToken()
            with self._lock:
                self._running[run_id] = token
            self._threads.submit(self._run, run_id, token)

    def _max_active_per_user(self) -> int:
        """How many runs one user may have at once: one slot is left for somebody else."""
        explicit = self._settings.service.max_active_builds_per_user
        if explicit is not None:
            return explicit
        slots = self._build.max_concurrent_builds
        if self._is_one_of_many:
            lost_after_s = self._settings.service.lost_worker_after_s
            slots = max(slots, registry.slots(self._engine, lost_after_s=lost_after_s))
        return max(1, slots - 1)

    def _kinds_for_me(self) -> tuple[Kind, ...]:
        return tuple(
            registry.kinds_for(
                self._engine,
                self._registration(),
                must_execute=self._must_execute,
                lost_after_s=self._settings.service.lost_worker_after_s,
            )
        )

    @property
    def _must_execute(self) -> bool:
        return self._build.unexecutable_targets == "refuse"

    def _registration(self) -> Registration:
        return Registration(
            name=self.name,
            host=self.host,
            version=VERSION,
            slots=self._build.max_concurrent_builds,
            abilities=self._abilities or Abilities(platforms=()),
        )

    def _look_at_host(self) -> None:
        """What this host can build; while Docker is away, what it could before."""
        service = self._settings.service
        native, emulated = service.worker_platforms, service.worker_emulated_platforms
        if native is None or emulated is None:
            try:
                own, foreign = buildx.builder_platforms(self._build, run_command)
            except CicError:
                before = self._abilities or Abilities(platforms=())
                own, foreign = list(before.platforms), list(before.emulated)
            native = tuple(own) if native is None else native
            emulated = tuple(foreign) if emulated is None else emulated
        self._abilities = Abilities(
            platforms=native,
            emulated=[name for name in emulated if name not in native],
            targets=host_cpu.executable_targets(),
        )

    def _run(self, run_id: str, token: CancelToken) -> None:
        _log.info("run %s begins", run_id)
        try:
            self._worker.run_build(run_id, token)
        except Exception:
            _log.exception("run %s was left by its worker", run_id)
        finally:
            with self._lock:
                del self._running[run_id]
            _log.info("run %s is done with", run_id)
            self.wake()
            self._sender.wake()

    def _hear_cancels(self) -> None:
        if self._running:
            self._obey(runs.cancel_requests(self._engine, self.name))

    def _heartbeat(self) -> None:
        with self._lock:
            before = set(self._running)
        try:
            mine = runs.heartbeat(self._engine, self.name)
            registry.say_alive(
                self._engine,
                self._registration(),
                busy=len(before),
                is_stopping=not self._accepting,
            )
        except CicError:
            self._database.answers(does=False)
            raise
        self._database.answers(does=True)
        self._obey(mine)
        with self._lock:
            left = [
                run_id for run_id in mine if run_id not in self._running and run_id not in before
            ]
            lost = [
                self._running[run_id]
                for run_id in before & set(self._running)
                if run_id not in mine
            ]
        for run_id in left:  # its thread ended without a word, as when the database was away
            runs.release(
                self._engine, run_id, self.name, max_attempts=self._settings.service.max_attempts
            )
        for token in lost:
            token.cancel("The build is not this worker's any more.")

    def _obey(self, mine: dict[str, bool]) -> None:
        for run_id, is_cancelled in mine.items():
            if is_cancelled:
                with self._lock:
                    token = self._running.get(run_id)
                if token is not None:
                    token.cancel("The build was cancelled.")

    def _reconcile(self) -> None:
        lost_after_s = self._settings.service.lost_worker_after_s
        is_steady = self._database.for_at_least(lost_after_s)
        taken = runs.reconcile(
            self._engine,
            host=self.host,
            worker=self.name,
            lost_after_s=lost_after_s if is_steady else None,
            max_attempts=self._settings.service.max_attempts,
        )
        if taken:
            _log.warning("%d runs were taken from workers that are gone", taken)

    def _sweep(self) -> None:
        """Remove what is not needed: expired links, and folders of builds that have ended.

        Links for front servers are brought in line with the store.
        """
        images = open_images(self._build, self._settings.library.registry)
        images.sweep()
        with contextlib.suppress(CicError):  # a daemon that is away is swept another time
            docker_export.sweep()
            container.sweep()
        downloads.sweep_links(self._build.tmp_folder / "images")
        downloads.offer_all_publicly(
            images,
            self._build.tmp_folder / "images",
            is_wanted=self._settings.service.public_downloads,
        )
        for folder in abandoned(self._build.builds_folder):
            remove_abandoned(folder)

    def _clean_up_often(self) -> None:
        """In a thread of its own: clean-up may wait for Docker, and no build waits for that."""
        every_s = self._settings.service.cleanup_every_s
        while every_s is not None and not self._ended.wait(every_s):
            self._tried(self._clean_up)

    def _clean_up(self) -> None:
        images = open_images(self._build, self._settings.library.registry)
        for item in Cleanup(self._engine, self._settings, images).run():
            _log.info(
                "removed %s %s, %d bytes: %s", item.kind, item.name, item.size_bytes, item.reason
            )


class PoolMain:
    """The pool's process: its lock, its socket, its signals."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = RunFolder(settings.library.build.tmp_folder)
        self._stops = 0

    def run(self) -> int:
        """Work until no web process is left, or until stopped.

        Ends at once when another pool runs.
        """
        try:
            with self._folder.pool_lock().acquire(timeout=0):
                self._serve()
        except filelock.Timeout:
            _log.info("another pool is there")
        return 0

    def _serve(self) -> None:
        process_guard.end_orphans()
        self._hear_signals()
        pool = BuildPool(make_engine(self._settings.service.database), self._settings)
        _log.info("pool %s begins", pool.name)
        with self._folder.listen() as listener:
            listener.settimeout(TICK_S)
            pool.start()
            self._listen(listener, pool)
        self._stop(pool)
        _log.info("pool %s ends", pool.name)

    def _hear_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _listen(self, listener: socket.socket, pool: BuildPool) -> None:
        alone_since = None
        while not self._stops:
            try:
                message = listener.recv(64)
            except TimeoutError:
                message = b""
            if message == STOP:
                self._stops += 1
            elif message:
                pool.wake()
            if self._folder.has_web_process() or not pool.is_idle():
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
            elif self._may_end(pool, alone_s=time.monotonic() - alone_since):
                return

    def _may_end(self, pool: BuildPool, *, alone_s: float) -> bool:
        """Return whether nothing is left to do; whoever asks for a build starts another pool."""
        if alone_s <= IDLE_S:
            return False
        try:
            return runs.is_idle(pool._engine)
        except CicError:
            return alone_s > ALONE_WITHOUT_DATABASE_S

    def _stop(self, pool: BuildPool) -> None:
        stopping = threading.Thread(
            target=pool.shutdown, args=(self._settings.service.stop_timeout_s,), daemon=True
        )
        stopping.start()
        while stopping.is_alive():
            if self._stops > 1:
                pool.hand_back()
            stopping.join(0.1)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        self._stops += 1


def main() -> int:
    """Run `python -m service.workers.pool [--detach]`.

    With `--detach`, it returns as soon as a detached child goes on.
    """
    settings = load_settings()
    prepare_process(settings)
    if "--detach" in sys.argv[1:]:
        if os.fork():
            return 0
        _redirect_output(settings.library.build.tmp_folder / "logs" / "pool.log")
    log_to_stderr(settings.service.log_format)
    return PoolMain(settings).run()


def prepare_process(settings: Settings) -> None:
    """Prepare the folder, the environment and the machine for a process that builds."""
    share_arenas()
    (settings.library.build.tmp_folder / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
    _let_buildx_write(settings.library.build.tmp_folder / "run" / "buildx")
    cgroup.prepare(settings.library.build)


def _let_buildx_write(own: Path) -> None:
    """Give Buildx a folder for its state, which it keeps in the home folder by default.

    Users that services run as often may not write there.
    """
    docker_config = os.environ.get("DOCKER_CONFIG") or str(Path.home() / ".docker")
    usual = Path(os.environ.get("BUILDX_CONFIG") or f"{docker_config}/buildx")
    try:
        usual.mkdir(parents=True, exist_ok=True)
    except OSError:
        os.environ["BUILDX_CONFIG"] = str(own)


def _redirect_output(path: Path) -> None:
    """Send standard output and error to a file.

    The terminal or pipe that we inherited belongs to another process.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_POOL_LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)


if __name__ == "__main__":
    sys.exit(main())
