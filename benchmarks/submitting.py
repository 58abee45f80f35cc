"""Measure what a long queue costs: `python3 -m benchmarks.submitting`.

Two services, one with an empty queue and one with a thousand builds in it, get the same requests in
turn. Then memory, how soon a plan is made, and how soon a request is answered whose image exists
already. Needs Docker and the base image of the tests.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, show
from service.db import accounts
from service.db import builds as db_builds
from service.db.database import make_engine
from tests.support.daemon_images import remove_images
from tests.support.memory import memory_bytes
from tests.support.site import MACHINE, USER, Service, make_site, running_service

QUEUED = 1000
SUBMITS = 60
MANY = "100000"
HELLO = {"eflows4hpc.yaml": "apt: []\n"}
MB = 1024**2
LIMITS = db_builds.Limits(queued_builds=int(MANY))


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return all figures of this module."""
    with (
        tempfile.TemporaryDirectory() as root,
        busy_service(Path(root) / "empty") as empty,
        busy_service(Path(root) / "full") as full,
    ):
        submit(full, "warm-up"), submit(empty, "warm-up")
        idle = memory_bytes(full)
        fill(full)
        short, long = [], []
        for turn in range(SUBMITS):
            short.append(submit(empty, f"turn-{turn}"))
            long.append(submit(full, f"turn-{turn}"))
        loaded = memory_bytes(full)
        again = finished_again(empty)
        plans = [plan(empty) for _ in range(SUBMITS)]
    p95 = [statistics.quantiles(times, n=20)[-1] for times in (short, long)]
    growth = max(loaded[pid] / idle[pid] - 1 for pid in idle.keys() & loaded.keys())
    return [
        Row(f"submit with {QUEUED} queued builds, 95 %", p95[1] * 1000, 100, " ms"),
        Row(
            f"submit with {QUEUED} queued builds against an empty queue, 95 %",
            p95[1] / p95[0],
            1.5,
            note=f"empty: {p95[0] * 1000:.0f} ms",
        ),
        Row("the same request again, until FINISHED", again, 0.5, " s"),
        Row(
            "a plan, with the registry on disk, median", statistics.median(plans) * 1000, 50, " ms"
        ),
        Row("resident memory of the largest process, idle", max(idle.values()) / MB, 150, " MB"),
        Row(f"... with {QUEUED} queued builds", max(loaded.values()) / MB, 150, " MB"),
        Row("... growth of the process that grew most", growth * 100, 10, " %"),
    ]


@contextlib.contextmanager
def busy_service(root: Path) -> Iterator[Service]:
    """Run a service whose only place is taken by a build that does not end.

    All other builds stay in the queue.
    """
    site = make_site(root).with_environ(
        CIC_BUILD_MAX_CONCURRENT_BUILDS="1",
        CIC_MAX_QUEUED_BUILDS_PER_USER=MANY,
        CIC_REPOSITORIES_MIRROR_MAX_AGE_S="60",
    )
    site.add_step(
        "demo",
        "sleep",
        HELLO | {"post_inst.sh": f"#!/bin/sh\n# {secrets.token_hex()}\nsleep 3600\n"},
    )
    site.add_step("demo", "hello", HELLO)
    for turn in ("warm-up", *(f"turn-{turn}" for turn in range(SUBMITS))):
        site.add_step("many", turn, HELLO | {"turn": turn})
    with running_service(site) as service:
        build_id = service.call("POST", "/build/", json=request("demo", "sleep")).json()["id"]
        while service.call("GET", f"/build/{build_id}").json()["status"] != "BUILDING":
            time.sleep(0.2)
        try:
            yield service
        finally:
            for page in service.call("GET", "/build/?status=BUILDING").json()["builds"]:
                service.call("POST", f"/build/{page['id']}/cancel")
            remove_images(site)


def request(workflow: str, step: str) -> dict[str, Any]:
    return {"machine": MACHINE, "workflow": workflow, "step_id": step, "push": False}


def submit(service: Service, step: str) -> float:
    """Return the seconds until a request is accepted."""
    begun = time.monotonic()
    answer = service.call("POST", "/build/", json=request("many", step))
    assert answer.status_code == 200, answer.text
    return time.monotonic() - begun


def plan(service: Service) -> float:
    """Return the seconds until a plan of a request is answered."""
    begun = time.monotonic()
    answer = service.call("POST", "/build/plan", json=request("demo", "hello"))
    assert answer.status_code == 200, answer.text
    return time.monotonic() - begun


def fill(service: Service, builds: int = QUEUED) -> None:
    """Let so many builds wait, each with a run of its own."""
    engine = make_engine(service.site.settings.service.database)
    user = accounts.by_name(engine, USER)
    assert user is not None
    for _ in range(builds):
        db_builds.create_or_join(
            engine,
            db_builds.NewBuild(
                user_id=user.id,
                request=request("many", "x"),
                inputs={},
                join_key=str(uuid.uuid4()),
                identity=None,
                platform="linux/amd64",
                target="x86_64",
                force=False,
                image_id="many_x",
                filename="many_x.sif",
                engine="singularity",
                push=False,
                warnings=[],
            ),
            LIMITS,
        )
    engine.dispose()


def finished_again(service: Service) -> float:
    """Return the seconds from the second submit of a request until its build is FINISHED."""
    for build in service.call("GET", "/build/?per_page=100").json()["builds"]:
        service.call("POST", f"/build/{build['id']}/cancel")
    assert service.build(request("demo", "hello"))["status"] == "FINISHED"
    begun = time.monotonic()
    answer = service.call("POST", "/build/", json=request("demo", "hello")).json()
    status = service.call("GET", f"/build/{answer['id']}").json()["status"]
    assert status == "FINISHED", status
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
