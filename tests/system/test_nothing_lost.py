"""Killed servers, killed pools, restarts and cancels in the middle of real builds; one build for
many requests.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.workers.executors import RunFolder
from tests.support.daemon_images import remove_images
from tests.support.site import MACHINE, Service, Site, make_site, running_service

pytestmark = pytest.mark.system

DOCKER = MACHINE | {"container_engine": "docker"}


@pytest.fixture
def slow_site(tmp_path: Path) -> Iterator[Site]:
    """A site with steps that take some seconds, and layers that no earlier test has made."""
    site = make_site(tmp_path)
    for step in ("slow", "slower"):
        site.add_step(
            "demo",
            step,
            {
                "eflows4hpc.yaml": "",
                "post_inst.sh": f"#!/bin/sh\n# {secrets.token_hex()}\necho begun; sleep 6; echo done\n",
            },
        )
    yield site.with_environ(CIC_STOP_TIMEOUT_S="0")
    remove_images(site)


def request(step: str = "slow", **changes: Any) -> dict[str, Any]:
    return {"machine": DOCKER, "workflow": "demo", "step_id": step, "push": False} | changes


def submit(service: Service, **changes: Any) -> str:
    answer = service.call("POST", "/build/", json=request(**changes))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def until(what: Callable[[], Any], timeout_s: float = 120) -> Any:
    """Wait until `what` gives something, and return that."""
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "that did not happen"
        time.sleep(0.1)
    return found


def wait_begun(service: Service, build_id: str) -> None:
    """Wait until the build's own script runs inside docker."""

    def has_begun() -> bool:
        status = service.call("GET", f"/build/{build_id}").json()
        assert status["status"] != "FAILED", status
        log = service.call("GET", f"/build/{build_id}/log").text
        return any(line.endswith(" begun") for line in log.splitlines())

    until(has_begun)


def processes(site: Site, word: str) -> list[int]:
    """The processes of this site whose command line holds `word`; its folder is in their
    environment or arguments.
    """
    mine, found = str(site.root).encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                arguments = (folder / "cmdline").read_bytes()
                if (
                    word.encode() in arguments
                    and mine in arguments + (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def runs(site: Site) -> list[Any]:
    engine = sa.create_engine(site.environ["CIC_DATABASE"])
    try:
        with engine.connect() as connection:
            return list(
                connection.exec_driver_sql(
                    "SELECT id, state, attempts, worker FROM runs ORDER BY created_at"
                )
            )
    finally:
        engine.dispose()


def test_a_killed_server_loses_nothing(slow_site: Site) -> None:
    with running_service(slow_site) as service:
        build_id = submit(service)
        wait_begun(service, build_id)
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
    with running_service(slow_site, name="second") as service:
        assert service.wait_for(build_id)["status"] == "FINISHED"
    ((_, _, attempts, _),) = runs(slow_site)
    assert attempts == 1


def test_a_killed_pool_is_replaced_and_its_build_begun_again(slow_site: Site) -> None:
    with running_service(slow_site) as service:
        build_id = submit(service)
        wait_begun(service, build_id)
        (pool,) = processes(slow_site, "service.workers.pool")
        os.kill(pool, signal.SIGKILL)
        until(lambda: not processes(slow_site, "buildx"), 10)
        assert service.wait_for(build_id)["status"] == "FINISHED"
        assert service.call("GET", f"/build/{build_id}/log").text.count("--- STARTED") == 2
    ((_, _, attempts, _),) = runs(slow_site)
    assert attempts == 2
    until(lambda: not processes(slow_site, "service.workers.pool"), 10)


def test_a_stopped_service_hands_its_builds_back(slow_site: Site) -> None:
    with running_service(slow_site) as service:
        build_id = submit(service)
        wait_begun(service, build_id)
    ((_, state, attempts, worker),) = runs(slow_site)
    assert (state, attempts, worker) == ("PENDING", 0, None)
    until(
        lambda: (
            not processes(slow_site, "service.workers.pool") and not processes(slow_site, "buildx")
        ),
        10,
    )
    with running_service(slow_site, name="second") as service:
        assert service.wait_for(build_id)["status"] == "FINISHED"


def test_cancel_ends_the_build_within_5_s_and_the_next_is_not_affected(slow_site: Site) -> None:
    with running_service(slow_site) as service:
        build_id = submit(service)
        wait_begun(service, build_id)
        assert processes(slow_site, "buildx")
        assert service.call("POST", f"/build/{build_id}/cancel").json()["error_code"] == "CANCELLED"
        until(lambda: not processes(slow_site, "buildx"), 5)
        assert service.wait_for(submit(service))["status"] == "FINISHED"
        assert service.call("GET", f"/build/{build_id}").json()["error_code"] == "CANCELLED"
        assert list((slow_site.tmp_folder / "builds").iterdir()) == []


def test_fifty_identical_requests_to_two_servers_make_one_build(slow_site: Site) -> None:
    with running_service(slow_site) as first, running_service(slow_site, name="second") as second:
        with ThreadPoolExecutor(10) as threads:
            answers = list(
                threads.map(
                    lambda n: (first, second)[n % 2].call("POST", "/build/", json=request()),
                    range(50),
                )
            )
        assert [answer.status_code for answer in answers] == [200] * 50
        ids = {answer.json()["id"] for answer in answers}
        assert len(ids) == 50
        assert {second.wait_for(build_id)["status"] for build_id in ids} == {"FINISHED"}
        assert len(processes(slow_site, "service.workers.pool")) == 1
    assert [(state, attempts) for _, state, attempts, _ in runs(slow_site)] == [("FINISHED", 1)]


def test_the_bound_holds_for_the_machine_and_the_second_waits(slow_site: Site) -> None:
    site = slow_site.with_environ(CIC_BUILD_MAX_CONCURRENT_BUILDS="1")
    with running_service(site) as first, running_service(site, name="second") as second:
        begun, waiting = submit(first), submit(second, step="slower")
        wait_begun(first, begun)
        assert second.call("GET", f"/build/{waiting}").json()["status"] == "PENDING"
        assert {first.wait_for(begun)["status"], first.wait_for(waiting)["status"]} == {"FINISHED"}


def test_a_pool_without_anybody_ends(slow_site: Site) -> None:
    with running_service(slow_site) as service:
        until(lambda: processes(slow_site, "service.workers.pool"))
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        until(
            lambda: not RunFolder(slow_site.tmp_folder).has_web_process(), 60
        )  # its worker process goes, too
        until(lambda: not processes(slow_site, "service.workers.pool"), 60)


def test_no_secret_of_the_service_is_in_an_argument(slow_site: Site) -> None:
    with running_service(slow_site) as service:
        build_id = submit(service)
        wait_begun(service, build_id)
        listed = subprocess.run(
            ["ps", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
        assert slow_site.environ["CIC_SECRET_KEY"] not in listed
