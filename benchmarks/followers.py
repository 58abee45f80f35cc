"""Measure how many people can follow logs at once.

Run `python3 -m benchmarks.followers [--followers N ...]`.

Starts a service with its default settings and a build that goes on talking. So many readers follow its log as pages
do: they come back with the last id when a stream ends. Meanwhile somebody asks short questions: how long do these take,
and how far behind is the slowest reader?
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
import uuid
from pathlib import Path

import requests
import sqlalchemy as sa

from service.db import accounts, tables
from service.db.database import make_engine, now, writing
from service.logs import folder
from tests.support.site import MACHINE, PASSWORD, USER, Service, make_site, running_service

SECONDS = 40.0
PAUSE_S = 3.0
"""What the stream tells browsers to wait before they come back."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--followers", type=int, nargs="+", default=[10, 50, 200, 400])
    counts = parser.parse_args().followers
    with (
        tempfile.TemporaryDirectory() as root,
        running_service(make_site(Path(root) / "site")) as service,
    ):
        build_id, log = going_on(service)
        print("followers  question, median  question, 95 %  slowest reader behind")
        for count in counts:
            median, late, behind = measure(service, build_id, log, count)
            print(
                f"{count:9}  {median * 1000:13.0f} ms  {late * 1000:12.0f} ms  {behind:19.1f} s",
                flush=True,
            )


def going_on(service: Service) -> tuple[str, Path]:
    """Write the rows of a build that a worker elsewhere is at, without the work."""
    engine = make_engine(service.site.settings.service.database)
    user = accounts.by_name(engine, USER)
    assert user is not None
    run_id, build_id = str(uuid.uuid4()), str(uuid.uuid4())
    with writing(engine) as connection:
        connection.execute(
            tables.RUNS.insert().values(
                id=run_id,
                join_key=run_id,
                user_id=user.id,
                platform="linux/amd64",
                force=False,
                state="BUILDING",
                attempts=1,
                retries=0,
                cancel_requested=False,
                created_at=now(),
                started_at=now(),
                worker="elsewhere:1",
                heartbeat_at=sa.null(),
                stage="build",
            )
        )
        connection.execute(
            tables.BUILDS.insert().values(
                id=build_id,
                user_id=user.id,
                run_id=run_id,
                request={"machine": MACHINE, "workflow": "w", "step_id": "s"},
                inputs={},
                image_id="w_s",
                filename="w_s.sif",
                engine="singularity",
                push=False,
                warnings=[],
                created_at=now(),
            )
        )
    engine.dispose()
    path = folder.FolderLogs(service.site.tmp_folder / "logs").of(run_id).path
    path.parent.mkdir(parents=True, exist_ok=True)
    return build_id, path


def measure(service: Service, build_id: str, log: Path, count: int) -> tuple[float, float, float]:
    """Return the median and 95th percentile of a short question, and the greatest age of a line.

    All are in seconds; the age is counted until a reader got the line.
    """
    log.write_bytes(b"")
    stop = threading.Event()
    worst = [0.0] * count
    threads = [threading.Thread(target=write, args=(log, stop))]
    threads += [
        threading.Thread(target=follow, args=(service, build_id, stop, worst, index))
        for index in range(count)
    ]
    for thread in threads:
        thread.start()
    taken = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        begun = time.monotonic()
        assert service.call("GET", f"/build/{build_id}").status_code == 200
        taken.append(time.monotonic() - begun)
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1], max(worst)


def write(log: Path, stop: threading.Event) -> None:
    with log.open("ab", buffering=0) as file:
        while not stop.wait(0.2):
            file.write(f"{time.time()}\n".encode())


def follow(
    service: Service, build_id: str, stop: threading.Event, worst: list[float], index: int
) -> None:
    """Follow a log as a browser does, until asked to stop."""
    offset = "0"
    url = f"{service.url}/image_creation/build/{build_id}/log"
    while not stop.is_set():
        with requests.get(
            url,
            params={"offset": offset},
            headers={"Accept": "text/event-stream"},
            stream=True,
            auth=(USER, PASSWORD),
            timeout=120,
        ) as answer:
            for line in answer.iter_lines(chunk_size=64):
                if stop.is_set():
                    break
                if line.startswith(b"id: "):
                    offset = line[4:].decode()
                elif line.startswith(b"data: ") and offset != "0":
                    worst[index] = max(worst[index], time.time() - float(line[6:]))
        stop.wait(PAUSE_S)


if __name__ == "__main__":
    main()
