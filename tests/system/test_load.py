"""Many queued builds and many followers of one log, at once: all are answered, and memory stays
flat.
"""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from benchmarks import followers, submitting
from tests.support.memory import memory_bytes
from tests.support.site import PASSWORD, USER, Service

pytestmark = pytest.mark.system
LINE_EVERY_S = 0.5
GROWTH = 1.1


def follow_to(
    service: Service, build_id: str, last: str, got: list[str], stop: threading.Event
) -> None:
    """Read a log as a page does, coming back with the last id, until `last` was read."""
    offset, url = "0", f"{service.url}/image_creation/build/{build_id}/log"
    while not stop.is_set():
        with requests.get(
            url,
            params={"offset": offset},
            headers={"Accept": "text/event-stream"},
            stream=True,
            auth=(USER, PASSWORD),
            timeout=120,
        ) as answer:
            assert answer.status_code == 200, answer.text
            for line in answer.iter_lines(chunk_size=64, decode_unicode=True):
                if line.startswith("id: "):
                    offset = line[4:]
                elif line.startswith("data: "):
                    got.append(line[6:])
                    if line[6:] == last:
                        return
        stop.wait(0.5)


def under_load(
    tmp_path: Path, *, queued: int, readers: int, submits: int
) -> tuple[list[float], list[float]]:
    """What each submit took, and by how much each process grew, while so many wait and so many
    read.
    """
    with submitting.busy_service(tmp_path / "site") as service:
        submitting.submit(service, "warm-up")
        submitting.fill(service, queued)
        build_id, log = followers.going_on(service)
        log.write_text("")
        stop, got = threading.Event(), [list[str]() for _ in range(readers)]
        with ThreadPoolExecutor(readers) as pool:
            reading = [
                pool.submit(follow_to, service, build_id, "last", lines, stop) for lines in got
            ]
            try:
                written, taken = ["first"], []
                with log.open("a", buffering=1) as file:
                    file.write("first\n")
                    while not all(got):  # every reader is there
                        assert not any(future.done() for future in reading)
                        time.sleep(0.1)
                    for turn in range(submits):
                        if (
                            turn == submits // 3
                        ):  # by now the threads have what they need to work with
                            before = memory_bytes(service)
                        written.append(f"line {turn}")
                        file.write(f"line {turn}\n")
                        taken.append(submitting.submit(service, f"turn-{turn}"))
                        time.sleep(LINE_EVERY_S)
                    file.write("last\n")
                for future in reading:
                    future.result(timeout=120)
            finally:
                stop.set()
        after = memory_bytes(service)
        assert all(lines == [*written, "last"] for lines in got)
        total = service.call("GET", "/build/?status=PENDING").json()["total"]
        assert total == queued + submits + 1
    return taken, [after[pid] / before[pid] for pid in before.keys() & after.keys()]


def test_some_queued_builds_and_followers(tmp_path: Path) -> None:
    taken, _ = under_load(tmp_path, queued=50, readers=20, submits=8)
    assert len(taken) == 8


@pytest.mark.endurance
@pytest.mark.timeout(900)
def test_a_thousand_queued_builds_and_two_hundred_followers(tmp_path: Path) -> None:
    taken, growth = under_load(tmp_path, queued=1000, readers=200, submits=60)
    p95 = statistics.quantiles(taken, n=20)[-1]
    print(
        f"1,000 queued builds, 200 followers: submit p95 {p95 * 1000:.0f} ms; processes grew by at most "
        f"{max(growth) - 1:.1%}"
    )
    assert max(growth) < GROWTH
