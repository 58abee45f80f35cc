"""Run a worker of a service of several hosts: a build pool that Celery wakes, until stopped.

SIGTERM: no new work, running builds have `stop_timeout_s` to end and return to the queue then. A
second one: at once.
"""

from __future__ import annotations

import logging
import time

import filelock
from flask import Flask

from config.settings import Settings
from image_builder import pipeline
from image_builder.errors import ServiceError
from image_builder.host import process_guard
from service.db.database import DatabaseSilent, db, init_database, make_engine, migrate
from service.workers.celery_executor import Listener
from service.workers.pool import TICK_S, BuildPool, PoolMain
from service.workers.run import BuildImage

_log = logging.getLogger(__name__)


class WorkerMain(PoolMain):
    """The worker's process.

    It needs no inbound port, and nothing of its host but `tmp_folder`, Docker and Singularity.
    """

    def __init__(self, settings: Settings, build_image: BuildImage = pipeline.build_image) -> None:
        super().__init__(settings)
        self._build_image = build_image

    def run(self) -> int:
        """Work until stopped.

        Raises `ServiceError` when another worker or pool has the same `tmp_folder`.
        """
        try:
            with self._folder.pool_lock().acquire(timeout=0):
                self._work()
        except filelock.Timeout:
            raise ServiceError(
                "Another worker has this tmp_folder.",
                hint="Give each worker on a machine a tmp_folder of its own.",
            ) from None
        return 0

    def _work(self) -> None:
        process_guard.end_orphans()
        self._hear_signals()
        self._make_tables()
        pool = BuildPool(
            make_engine(self._settings.service.database),
            self._settings,
            build_image=self._build_image,
            is_one_of_many=True,
        )
        _log.info(
            "worker %s begins: %d builds at once",
            pool.name,
            self._settings.library.build.max_concurrent_builds,
        )
        pool.start()
        listener = Listener(self._settings, pool)
        listener.start()
        while not self._stops:
            time.sleep(0.2)
        self._stop(pool)
        listener.stop()
        _log.info("worker %s ends", pool.name)

    def _make_tables(self) -> None:
        """Make or upgrade the tables, as a web host does: the first process to start has to.

        It waits for a database that does not answer.
        """
        app = Flask(__name__)
        init_database(app, self._settings.service.database)
        while not self._stops:
            try:
                migrate(app, self._settings.library.build.tmp_folder / "run" / "migration.lock")
                break
            except DatabaseSilent as error:
                _log.warning("the worker waits: %s", error)
                time.sleep(TICK_S)
        with app.app_context():
            db.engine.dispose()
