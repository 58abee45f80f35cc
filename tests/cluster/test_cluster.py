"""Several hosts: real PostgreSQL, Redis, web processes and workers, each in a network namespace of
its own.

Most builds wait rather than compute (`waiting_worker`); what they wait in is the real worker.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import throughput
from service.workers.pool import host_name
from service.workers.registry import all_workers
from tests.cluster import network
from tests.cluster.registry import registry
from tests.cluster.service import Cluster, Process, RabbitMQ, Redis, cluster
from tests.support.daemon_images import remove_images
from tests.support.postgresql import programs
from tests.support.site import make_site

LACKING = network.why_not() or (None if programs() else "PostgreSQL is not installed")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(LACKING is not None, reason=str(LACKING))]


@pytest.fixture(params=[Redis])
def several(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A service with records, a broker and 60 steps, `many/s0` to `many/s59`."""
    if request.param is RabbitMQ and not RabbitMQ.PROGRAM.exists():
        pytest.skip("RABBITMQ IS NOT INSTALLED: NOTHING IS TESTED WITH IT")
    site = make_site(tmp_path)
    for number in range(60):
        folder = site.registry / "many" / f"s{number}"
        folder.mkdir(parents=True)
        (folder / "eflows4hpc.yaml").write_text("apt:\n  - bc\n")
        (folder / "number").write_text(
            f"{number} {secrets.token_hex(8)}"
        )  # no earlier test's image is the same
    site.add_step("many", "last", {"eflows4hpc.yaml": "apt:\n  - less\n"})
    site = site.with_environ(CIC_REPOSITORIES_MIRROR_MAX_AGE_S="600")
    with network.network() as net, cluster(site, net, request.param) as made:
        yield made
    remove_images(site)


def test_many_builds_on_many_hosts(several: Cluster) -> None:
    """Two web processes, three workers, 60 builds: all end, limits per worker hold, no build twice."""
    for number in range(3):  # before the tables are there: whoever is first makes them
        several.waiting_worker(f"worker{number}", slots=2 + number, wait_s=1)
    webs = [several.web(), several.web()]
    builds = [several.submit(f"s{n}", web=webs[n % 2], push=False) for n in range(60)]
    several.wait_for_all(60, 240)
    assert several.states() == {"FINISHED": 60}
    assert Counter(what for _, _, what, _ in several.notes()) == {"begin": 60, "end": 60}
    assert len({run for _, _, what, run in several.notes() if what == "end"}) == 60
    assert all(most <= 2 + int(who[-1]) for who, most in several.most_at_once().items())
    assert set(several.most_at_once()) == {"worker0", "worker1", "worker2"}
    assert {run.attempts for run in several.runs()} == {1}
    for web in webs:  # each of them tells and shows what was built anywhere
        status = several.status(builds[0], web)
        assert status["status"] == "FINISHED"
        log = several.call("GET", f"/build/{builds[0]}/log", web=web)
        assert "waited\n" in log.text and log.headers["X-Log-Complete"] == "true"
    ready = several.call("GET", "/health/ready").json()
    assert {"database", "broker", "workers"} <= set(ready["checks"])
    for process in several.processes:
        assert "Traceback" not in process.log()


def test_whatever_goes_every_build_ends_once(several: Cluster) -> None:
    """A killed worker, one whose network is cut for a minute, Redis and PostgreSQL restarted, a
    killed web process.
    """
    webs = [several.web(), several.web()]
    killed, cut, steady = (
        several.waiting_worker(name, slots=2, wait_s=15) for name in ("killed", "cut", "steady")
    )
    builds = [several.submit(f"s{n}", web=webs[n % 2]) for n in range(20)]
    _until_each_works(several, {"killed", "cut", "steady"})
    killed.kill()
    cut.host.cut()
    cut_at = time.monotonic()
    time.sleep(5)
    several.broker.stop()
    several.broker.start()
    time.sleep(5)
    several.database.stop(remove=False)
    time.sleep(3)
    several.database.start()
    webs[0].kill()
    del several.webs[0]
    killed.start()
    time.sleep(max(0.0, 60 - (time.monotonic() - cut_at)))
    cut.host.join()
    builds += [several.submit(f"s{n}") for n in range(20, 26)]
    several.wait_for_all(26, 400)

    assert several.states() == {"FINISHED": 26}
    ended = [(who, run) for _, who, what, run in several.notes() if what == "end"]
    for run in several.runs():  # the record names the worker that really built it
        assert (str(run.worker and _name_of(several, run.worker)), run.id) in ended
    assert any(run.attempts > 1 for run in several.runs())
    for build in builds:
        log = several.call("GET", f"/build/{build}/log").text
        assert log.rstrip().endswith("waited"), log[-500:]
    assert steady.process.poll() is None and cut.process.poll() is None
    assert cut.stop() == 0


def test_a_build_waits_for_a_worker_that_can_build_it_and_says_so(several: Cluster) -> None:
    several.web()
    several.waiting_worker("amd", wait_s=0.2)
    build = several.submit("s0", platform="linux/arm64")
    plain = several.submit("s1")
    assert several.wait(plain)["status"] == "FINISHED"
    expected = (
        "Waits for a worker that builds for linux/arm64: those at work build for linux/amd64."
    )
    end = time.monotonic() + 30
    while (message := several.wait(build, "PENDING")["message"]) != expected:
        assert message in (None, "Waits for a worker: none is at work."), "before the worker came"
        assert time.monotonic() < end
        time.sleep(0.2)
    several.waiting_worker("emulates", wait_s=0.2, CIC_WORKER_EMULATED_PLATFORMS="linux/arm64")
    assert several.wait(build)["message"] is None
    assert {
        who for _, who, _, run in several.notes() if run in _runs_for(several, "linux/arm64")
    } == {"emulates"}

    several.waiting_worker("arm", wait_s=0.2, CIC_WORKER_PLATFORMS="linux/arm64")
    _until_there(several, 3)
    native = [several.submit(f"s{n}", platform="linux/arm64") for n in range(2, 6)]
    for build in native:
        assert several.wait(build)["status"] == "FINISHED"
    arm = [
        who
        for _, who, what, run in several.notes()
        if run in _runs_for(several, "linux/arm64") and what == "end"
    ]
    assert arm == ["emulates", *["arm"] * 4]


@pytest.mark.parametrize("several", [Redis, RabbitMQ], indirect=True)
def test_a_broker_that_is_impatient_repeats_nothing(several: Cluster) -> None:
    """Redis gives a message to another after 5 s; RabbitMQ closes the channel that it was sent
    through.
    """
    if isinstance(several.broker, Redis):
        several.environ["CIC_BROKER_OPTIONS"] = '{"visibility_timeout": 5}'
    several.web()
    for name in ("one", "other"):
        several.waiting_worker(name, wait_s=30)
    build = several.submit("s0")
    assert several.wait(build)["status"] == "FINISHED"
    time.sleep(6)
    assert [what for _, _, what, _ in several.notes()] == ["begin", "end"]
    (run,) = several.runs()
    assert run.attempts == 1


@pytest.mark.parametrize("several", [RabbitMQ], indirect=True)
def test_rabbitmq_wakes_workers_and_may_be_restarted(several: Cluster) -> None:
    several.web()
    workers = [several.waiting_worker(name, slots=2, wait_s=3) for name in ("one", "other")]
    _until_there(several, 2)
    builds = [several.submit(f"s{n}") for n in range(8)]
    _until_each_works(several, {"one", "other"})
    several.broker.stop()
    builds += [several.submit(f"s{n}") for n in range(8, 12)]
    several.broker.start()
    several.wait_for_all(12, 240)
    assert several.states() == {"FINISHED": 12}
    assert Counter(what for _, _, what, _ in several.notes()) == {"begin": 12, "end": 12}

    end = time.monotonic() + 90  # the web process has found it again
    while several.call("GET", "/health/ready").json()["checks"].get("broker") != "ok":
        assert time.monotonic() < end
        time.sleep(1)
    woken = several.submit("s20")
    several.wait(woken, "STARTED", "BUILDING", timeout_s=30)
    several.broker.stop()
    several.broker.start()
    assert several.wait(woken)["status"] == "FINISHED"

    assert workers[0].stop() == 0
    several.broker.stop()
    assert workers[1].stop() == 0  # which was listening, or looking for its broker


def test_a_sif_of_one_worker_is_had_everywhere(several: Cluster, tmp_path: Path) -> None:
    """Real docker, a real conversion; followed, listed and downloaded through both web processes,
    and pulled.
    """
    with registry(several.net.host(), tmp_path / "images") as images:
        several.environ |= images.environ("site/images")
        webs = [several.web(), several.web()]
        several.real_worker("builder")
        build = several.submit("s0", engine="singularity", web=webs[0])
        followed = [_follow(several, build, web) for web in webs]
        status = several.wait(build, timeout_s=600)
        assert status["status"] == "FINISHED", several.call("GET", f"/build/{build}/log").text[
            -3000:
        ]
        whole = several.call("GET", f"/build/{build}/log", web=webs[1]).text
        assert "docker buildx build" in whole
        for thread, text in followed:
            thread.join(60)
            assert "event: end" in "".join(text)
            assert _lines_of("".join(text)) == whole.splitlines()

        filename = status["filename"]
        for web in webs:
            listed = several.call("GET", "/image/", web=web).json()["images"]
            assert [image["filename"] for image in listed] == [filename]
            sent = several.call("GET", f"/images/download/{filename}", web=web)
            assert hashlib.sha256(sent.content).hexdigest() == status["sha256"]
        again = several.submit(
            "s0", engine="singularity", web=webs[1]
        )  # stored: any web process knows
        assert several.status(again)["status"] == "FINISHED" and len(several.runs()) == 1

        pulled = tmp_path / "pulled.sif"
        environ = {
            **os.environ,
            "APPTAINER_CACHEDIR": str(tmp_path / "cache"),
            "HOME": str(tmp_path),
            "SSL_CERT_FILE": str(images.ca_bundle),
        }
        for name in ("APPTAINER", "SINGULARITY"):
            environ |= {
                f"{name}_DOCKER_USERNAME": images.user,
                f"{name}_DOCKER_PASSWORD": images.password,
            }
        address = f"oras://{images.address}/site/images:{filename.removesuffix('.sif')}"
        done = subprocess.run(
            ["singularity", "pull", str(pulled), address],
            env=environ,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert hashlib.sha256(pulled.read_bytes()).hexdigest() == status["sha256"]


def test_throughput_grows_with_workers_as_the_simulation_says() -> None:
    """One, two and four workers whose builds wait: at least 0.9 of the ideal, and the simulation
    within a tenth.
    """
    for row in throughput.rows():
        assert row.verdict == "met", row


def _follow(several: Cluster, build: str, web: Process) -> tuple[threading.Thread, list[str]]:
    """Read a build's events as they come, and come back until the end."""
    text: list[str] = []

    def read() -> None:
        offset = "0"
        while "event: end" not in "".join(text):
            answer = several.call(
                "GET",
                f"/build/{build}/log",
                web=web,
                headers={"Accept": "text/event-stream", "Last-Event-ID": offset},
            )
            text.append(answer.text)
            ids = re.findall(r"^id: (\d+)$", answer.text, re.MULTILINE)
            offset = ids[-1] if ids else offset

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, text


def _lines_of(events: str) -> list[str]:
    blocks = [block for block in events.split("\n\n") if "event: end" not in block]
    return [
        line.removeprefix("data: ")
        for block in blocks
        for line in block.splitlines()
        if line.startswith("data: ")
    ]


def _until_each_works(several: Cluster, names: set[str]) -> None:
    end = time.monotonic() + 90
    while {who for _, who, _, _ in several.notes()} != names:
        assert time.monotonic() < end, several.notes()
        time.sleep(0.2)


def _until_there(several: Cluster, count: int) -> None:
    end = time.monotonic() + 60
    while (
        sum(worker["state"] == "ready" for worker in all_workers(several.engine, lost_after_s=10))
        < count
    ):
        assert time.monotonic() < end
        time.sleep(0.2)


def _runs_for(several: Cluster, platform: str) -> set[str]:
    return {run.id for run in several.runs() if run.platform == platform}


def _name_of(several: Cluster, worker: str) -> str:
    """What the test calls a worker that calls itself after its host and folder."""
    names = {
        host_name(several.site.root / process.name): process.name for process in several.processes
    }
    return names[worker.rpartition(":")[0]]
