"""Measure how much more several workers do than one: `python3 -m benchmarks.throughput`.

One, two and four workers, each on a host of its own with PostgreSQL and Redis on theirs, get the
same builds, whose steps wait rather than compute: what is measured is the service. The result of
the simulation is shown, too. Needs root, PostgreSQL, Redis, Docker and the base image of the tests.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
import uuid
from pathlib import Path

import sqlalchemy as sa
from flask import Flask

from benchmarks.rows import Row, show
from benchmarks.simulation import MEASURED, run
from config import load_settings
from image_builder.plan.inputs import Inputs
from image_builder.plan.resolve import resolve
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import parse_request
from service.db import accounts, builds, tables
from service.db.database import db, init_database, migrate, reading
from service.submission import new_build
from service.workers.celery_executor import CeleryExecutor
from service.workers.registry import all_workers
from tests.cluster import network
from tests.cluster.service import Cluster, cluster
from tests.support.site import MACHINE, PASSWORD, USER, make_site

BUILDS, SLOTS, WAIT_S = 32, 2, 6.0
WORKERS = (1, 2, 4)


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return all figures of this module."""
    why = network.why_not()
    if why is not None:
        return [
            Row(
                "throughput of 4 workers against 4 times that of 1",
                None,
                0.9,
                at_least=True,
                note=why,
            )
        ]
    taken = {count: measure(count) for count in WORKERS}
    found = [
        Row(
            f"throughput of {count} workers against {count} times that of 1",
            taken[1] / taken[count] / count,
            0.9,
            at_least=True,
            note=f"{BUILDS} builds of {WAIT_S:.0f} s in {taken[count]:.1f} s",
        )
        for count in WORKERS[1:]
    ]
    for count in WORKERS:
        _, simulated = run([(0.0, WAIT_S)] * BUILDS, slots=SLOTS * count, begin_s=MEASURED.begin_s)
        off_percent = abs(simulated / taken[count] - 1) * 100
        found.append(
            Row(
                f"{count} workers: the simulation is off by",
                off_percent,
                10,
                " %",
                note=f"{simulated:.1f} s",
            )
        )
    return found


def measure(count: int) -> float:
    """Return the seconds from the first request to the last end, with so many workers."""
    with tempfile.TemporaryDirectory() as root, network.network() as net:
        site = make_site(Path(root))
        site.add_step("many", "s", {"eflows4hpc.yaml": "apt: []\n"})
        with cluster(site, net) as several:
            executor, request, inputs, user_id = prepare(several)
            for number in range(count):
                several.waiting_worker(f"worker{number}", slots=SLOTS, wait_s=WAIT_S)
            while len(all_workers(several.engine, lost_after_s=60)) < count:
                time.sleep(0.2)
            time.sleep(5)  # for Celery to connect
            for _ in range(BUILDS):
                new = new_build(request, inputs, user_id)
                _, run_id = builds.create_or_join(
                    several.engine, _alone(new), builds.Limits(queued_builds=BUILDS)
                )
                executor.submit(run_id)
            several.wait_for_all(BUILDS, 600)
            executor.shutdown()
            executor.join(30)
            with reading(several.engine) as connection:
                begun, ended = connection.execute(
                    sa.select(
                        sa.func.min(tables.RUNS.c.created_at), sa.func.max(tables.RUNS.c.ended_at)
                    )
                ).one()
            return float((ended - begun).total_seconds())


def prepare(several: Cluster) -> tuple[CeleryExecutor, BuildRequest, Inputs, int]:
    """Prepare what a web process would: tables, a user, a request with its inputs, and an executor."""
    settings = load_settings(
        environ={**several.environ, "CIC_BUILD_TMP_FOLDER": str(several.site.root / "web")}
    )
    app = Flask("benchmark")
    init_database(app, settings.service.database)
    migrate(app, several.site.root / "lock")
    with app.app_context():
        db.engine.dispose()
    accounts.add_user(several.engine, USER, PASSWORD)
    executor = CeleryExecutor(several.engine, settings)
    executor.start()
    user = accounts.by_name(several.engine, USER)
    assert user is not None
    request = parse_request(
        {
            "machine": {**MACHINE, "container_engine": "docker"},
            "workflow": "many",
            "step_id": "s",
            "push": False,
        }
    )
    return executor, request, resolve(request, settings.library), user.id


def _alone(new: builds.NewBuild) -> builds.NewBuild:
    """The same build, which shares its run with no other."""
    return dataclasses.replace(new, join_key=str(uuid.uuid4()))


if __name__ == "__main__":
    main()
