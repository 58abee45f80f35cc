"""The database locked for ten seconds by somebody else: requests are answered, and nothing is lost."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.site import MACHINE, Service, make_site, running_service

pytestmark = pytest.mark.system

LOCKED_S = 10.0


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """A writer that has begun and does not end, until the block does."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def submit(service: Service, step: str) -> tuple[int, str, str]:
    """Status code, id of the build, and `Retry-After`."""
    answer = service.call(
        "POST",
        "/build/",
        json={
            "machine": MACHINE | {"container_engine": "docker"},
            "workflow": "demo",
            "step_id": step,
            "push": False,
        },
    )
    return answer.status_code, answer.json().get("id", ""), answer.headers.get("Retry-After", "")


def test_a_locked_database_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    site = make_site(tmp_path).with_environ(
        CIC_BUILD_BASE_IMAGE="cic-test-not-there:1", CIC_MAX_RETRIES="0"
    )
    for number in range(8):
        site.add_step("demo", f"step{number}", {"eflows4hpc.yaml": f"apt: [package{number}]\n"})
    with running_service(site) as service, ThreadPoolExecutor(8) as threads:
        before = submit(service, "step0")
        assert before[0] == 200
        with locked(tmp_path / "db.sqlite"):
            asked = [threads.submit(submit, service, f"step{number}") for number in range(1, 8)]
            end = time.monotonic() + LOCKED_S
            while time.monotonic() < end:  # who only reads does not wait
                assert service.call("GET", f"/build/{before[1]}").status_code == 200
                time.sleep(0.2)
        answers = [each.result() for each in asked]
        assert all(
            status == 200 or (status == 503 and retry_after) for status, _, retry_after in answers
        ), answers
        accepted = [build_id for status, build_id, _ in answers if status == 200]
        assert accepted
        for build_id in [before[1], *accepted]:
            assert service.wait_for(build_id)["error_code"] == "BASE_IMAGE_UNAVAILABLE"
