"""Send a run's id through Celery to the workers on all hosts at once.

One task for each run id, to every worker: the one that claims the run in the database works on it,
and the others find that there is nothing to do. A task is done, and acknowledged, as soon as it was
heard. So a broker that redelivers or closes what takes hours has nothing to redeliver; one that is
away, or loses everything, costs the few seconds after which workers look by themselves.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from typing import Any

from celery import Celery  # type: ignore[import-untyped]
from celery.worker import state as celery_state  # type: ignore[import-untyped]
from kombu.asynchronous import get_event_loop
from kombu.common import Broadcast
from kombu.entity import Exchange
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.errors import CicError, ErrorCode, Misconfigured, Unavailable
from service.db import runs
from service.workers import registry
from service.workers.pool import BuildPool

EXCHANGE = "cic.runs"
WAITS, CANCEL = "cic.run_waits", "cic.cancel_run"
ANSWER_S = 3.0
"""How long a broker may take to answer."""
LOOK_AFTER_S = 5.0
"""How often a web process looks whether workers were lost, and what waiting runs wait for."""
UNSENT = 10_000
"""How many messages wait for a broker that is away; what is beyond is not sent."""

_log = logging.getLogger(__name__)


def make_celery(settings: Settings) -> Celery:
    """Return the Celery application of these settings; it has no tasks yet."""
    service = settings.service
    if service.broker_url is None:
        raise Misconfigured("broker_url is not set.", hint="Write for example redis://host:6379/0.")
    url = service.broker_url.get_secret_value()
    app = Celery("cic", broker=url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_serializer="json",
        accept_content=["json"],
        task_queues=[Broadcast(EXCHANGE)],
        task_default_queue=EXCHANGE,
        broker_connection_timeout=ANSWER_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        enable_utc=True,
        broker_transport_options={**_patience(url), **service.broker_options},
    )
    return app


def _patience(url: str) -> dict[str, Any]:
    """How long each transport waits for a broker that says nothing, in its own words."""
    if url.startswith("amqp"):
        return {"write_timeout": 4 * ANSWER_S}
    return {
        "socket_timeout": 4 * ANSWER_S,
        "socket_connect_timeout": ANSWER_S,
        "socket_keepalive": True,
    }


class CeleryExecutor:
    """The web processes' end. A thread sends the messages, so no request waits for a broker.

    The thread also does what any process may do for all: it takes runs from workers that are gone.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._celery = make_celery(settings)
        self._exchange = Exchange(EXCHANGE, type="fanout")
        self._unsent: queue.Queue[tuple[str, str] | None] = queue.Queue(UNSENT)
        self._thread = threading.Thread(target=self._work, name="broker", daemon=True)
        self._stopped = threading.Event()
        self._database = registry.DatabaseUptime()

    def start(self) -> None:
        self._thread.start()

    def submit(self, run_id: str) -> None:
        self._put(WAITS, run_id)

    def cancel(self, run_id: str) -> None:
        self._put(CANCEL, run_id)

    def shutdown(self) -> None:
        self._stopped.set()
        with contextlib.suppress(queue.Full):
            self._unsent.put_nowait(None)

    def join(self, timeout_s: float) -> None:
        """Wait until nothing is sent or looked at any more."""
        self._thread.join(timeout_s)

    def require_broker(self) -> None:
        """Raise `Unavailable` when the broker does not answer."""
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=ANSWER_S)
        except Exception as error:  # each transport has errors of its own
            raise Unavailable(
                f"The broker does not answer ({type(error).__name__}).",
                hint="Workers look for builds every few seconds meanwhile. Check broker_url.",
                code=ErrorCode.INTERNAL,
            ) from error

    def require_worker(self) -> None:
        """Raise `Unavailable` when no worker takes builds."""
        registry.require_worker(
            self._engine, lost_after_s=self._settings.service.lost_worker_after_s
        )

    def _put(self, task: str, run_id: str) -> None:
        with contextlib.suppress(queue.Full):
            self._unsent.put_nowait((task, run_id))

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                message = self._unsent.get(timeout=LOOK_AFTER_S)
            except queue.Empty:
                self._look()
                continue
            if message is not None:
                self._send(*message)
            if self._unsent.empty():
                self._look()

    def _send(self, task: str, run_id: str) -> None:
        try:
            self._celery.send_task(
                task,
                (run_id,),
                exchange=self._exchange,
                routing_key=EXCHANGE,
                declare=[self._exchange],
                retry=False,
            )
        except Exception as error:  # each transport has errors of its own
            _log.warning("the broker did not take %s: %s", task, type(error).__name__)

    def _look(self) -> None:
        service = self._settings.service
        try:
            registry.explain_waiting(
                self._engine,
                lost_after_s=service.lost_worker_after_s,
                must_execute=self._settings.library.build.unexecutable_targets == "refuse",
            )
            self._database.answers(does=True)
            if self._database.for_at_least(service.lost_worker_after_s):
                runs.reconcile(
                    self._engine,
                    host=None,
                    worker=None,
                    lost_after_s=service.lost_worker_after_s,
                    max_attempts=service.max_attempts,
                )
        except CicError as error:
            self._database.answers(does=False)
            _log.warning("looking after workers: %s", error)
        except Exception:
            _log.exception("looking after workers failed")


class Listener:
    """A worker's end: receives runs and wakes its pool, in a thread, until it is stopped.

    One at a time in a process: what ends Celery's worker is a flag of the process.
    """

    def __init__(self, settings: Settings, pool: BuildPool) -> None:
        self._celery = make_celery(settings)
        self._name = pool.name
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="celery", daemon=True)

        @self._celery.task(name=WAITS, shared=False)  # type: ignore[untyped-decorator]
        def run_waits(run_id: str) -> None:
            pool.submit(run_id)

        @self._celery.task(name=CANCEL, shared=False)  # type: ignore[untyped-decorator]
        def cancel_run(run_id: str) -> None:
            pool.cancel(run_id)

    def start(self) -> None:
        celery_state.should_stop = None
        self._thread.start()

    def stop(self, timeout_s: float = 3 * ANSWER_S) -> None:
        """Receive nothing more, and wait until the thread has ended.

        It ends on its own if the broker keeps it longer.
        """
        self._stopped.set()
        celery_state.should_stop = 0
        loop = get_event_loop()
        if loop is not None:
            loop.call_soon(lambda: None)  # it looks at the flag once it is awake
        self._thread.join(timeout_s)

    def _listen(self) -> None:
        """Celery's own worker, which reconnects by itself; what runs in it ends at once."""
        # in this thread: Celery looks here for the tasks of the messages it receives
        self._celery.set_current()
        while not self._stopped.is_set():
            try:
                worker: Any = self._celery.WorkController(
                    pool_cls="solo",
                    concurrency=1,
                    hostname=f"cic@{self._name}",
                    loglevel=logging.INFO,
                    without_gossip=True,
                    without_mingle=True,
                    without_heartbeat=True,
                )
                worker.start()
            except Exception:
                _log.exception("Celery's worker ended; it begins again")
            self._stopped.wait(ANSWER_S)
