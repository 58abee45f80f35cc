"""A driver that keeps a service busy with small builds while parts of it are killed without a word.

Whatever the service starts carries a mark of the site's in its environment, so that victims and
leftovers are found wherever they went. The service may run on another Docker daemon than the
machine's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import random
import secrets
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa

from image_builder.host import process_guard
from image_builder.sif import format
from service.workers.executors import WAKE, RunFolder
from tests.support.site import (
    MACHINE,
    PASSWORD,
    USER,
    Service,
    Site,
    add_user,
    free_port,
    running_service,
)

MARK = "TEST_SITE_MARK"
USERS = (USER, "grace")
TRUE_CODES = frozenset({"LOST_WORKER", "DOCKER_UNAVAILABLE", "INTERRUPTED", "NO_SPACE"})
"""What a build of a step without faults may fail with when parts of the service, Docker or the disk
go away.
"""
CONVERSION = (
    "tar2sqfs",
    "tarfilter",
    "unsquashfs",
    "mksquashfs",
    "singularity",
    "apptainer",
    "docker\0export",
)


def seed() -> int:
    """The seed of this test, which CIC_TEST_SEED may set; printed, so that the same can be tried
    again.
    """
    chosen = int(os.environ.get("CIC_TEST_SEED") or secrets.randbelow(2**32))
    print(f"CIC_TEST_SEED={chosen}")
    return chosen


def until(what: Callable[[], Any], timeout_s: float = 120, *, every_s: float = 0.1) -> Any:
    """Wait until `what` gives something, and return that."""
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "that did not happen"
        time.sleep(every_s)
    return found


@dataclasses.dataclass(frozen=True)
class Process:
    """A process as /proc shows it; `started` tells it from a later one with the same number."""

    pid: int
    parent: int
    started: str
    arguments: str

    @property
    def is_there(self) -> bool:
        found = read_process(self.pid)
        return found is not None and found.started == self.started


def read_process(pid: int) -> Process | None:
    """The living process of that number, or None."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[1]), fields[19], arguments)


@dataclasses.dataclass
class Chaos:
    """A running service that is killed piece by piece. `random` chooses whom, when, and what is
    built meanwhile.
    """

    site: Site
    random: random.Random
    steps: int
    service: Service
    stack: contextlib.ExitStack
    mark: str
    environ: dict[str, str] = dataclasses.field(default_factory=dict)
    accepted: dict[str, str] = dataclasses.field(default_factory=dict)
    """The ids of accepted builds, and whose they are."""
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    killed: Counter[str] = dataclasses.field(default_factory=Counter)
    ready_s: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    guards: set[Process] = dataclasses.field(default_factory=set)

    def marked(self) -> list[Process]:
        """The service's living processes, and what they started."""
        entry, found = f"{MARK}={self.mark}".encode(), []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if entry in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(read_process(int(folder.name)))
        return [process for process in found if process is not None]

    def remember_guards(self, marked: list[Process]) -> None:
        """A guard has an empty environment: it is known by its parent, as long as that lives."""
        parents = {process.pid for process in marked}
        for folder in Path("/proc").iterdir():
            process = read_process(int(folder.name)) if folder.name.isdigit() else None
            if (
                process is not None
                and process.parent in parents
                and process_guard.__file__ in process.arguments
            ):
                self.guards.add(process)

    def victims(self) -> dict[str, list[Process]]:
        """Whom one may kill now, by what they are."""
        marked = self.marked()
        self.remember_guards(marked)
        server = self.service.process.pid
        kinds: dict[str, Callable[[Process], bool]] = {
            "server": lambda process: process.pid == server,
            "web process": lambda process: (
                process.parent == server and "builder_service" in process.arguments
            ),
            "pool": lambda process: "service.workers.pool" in process.arguments,
            "docker client": lambda process: "buildx" in process.arguments,
            "conversion": lambda process: any(word in process.arguments for word in CONVERSION),
        }
        found = {
            kind: [process for process in marked if matches(process)]
            for kind, matches in kinds.items()
        }
        found["guard"] = [process for process in self.guards if process.is_there]
        return {kind: processes for kind, processes in found.items() if processes}

    def submit(self) -> None:
        """Ask for a build; what is not accepted is no matter, as long as the service says so."""
        user = self.random.choice(USERS)
        body = {
            "machine": MACHINE,
            "workflow": "demo",
            "step_id": f"step{self.random.randrange(self.steps)}",
            "push": False,
            "force": self.random.random() < 0.3,
        }
        try:
            answer = self.service.call("POST", "/build/", user=user, json=body)
        except requests.RequestException:
            self.refused["no answer"] += 1
            return
        if answer.status_code == 200:
            self.accepted[answer.json()["id"]] = user
        else:
            assert answer.status_code == 503 and "Retry-After" in answer.headers, answer.text
            self.refused["503"] += 1

    def active(self) -> int:
        return len(
            [state for _, state, *_ in runs(self.site) if state not in ("FINISHED", "FAILED")]
        )

    def kill_one(self) -> None:
        """Kill somebody, and measure until the service is ready again."""
        found = self.victims()
        rare = min(self.killed[kind] for kind in found)
        kind = self.random.choice([kind for kind in sorted(found) if self.killed[kind] <= rare + 1])
        victim = self.random.choice(sorted(found[kind], key=lambda process: process.pid))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
        begin = time.monotonic()
        until(
            lambda: not victim.is_there, 60, every_s=0.005
        )  # one that is dying still seems to listen
        self.killed[kind] += 1
        if kind == "server":
            self.restart()
        until(self.is_ready, 60, every_s=0.02)
        self.ready_s.setdefault(kind, []).append(time.monotonic() - begin)

    def restart(self) -> None:
        """The server is gone: another one on the same port."""
        self.service.process.wait()
        port = int(self.service.url.rpartition(":")[2])
        self.service = self.stack.enter_context(
            running_service(
                self.site, name=f"service-{sum(self.killed.values())}", port=port, with_user=False
            )
        )

    def is_ready(self) -> bool:
        """Whether it answers a user's call, and somebody builds."""
        try:
            answer = self.service.call("GET", "/build/")
        except requests.RequestException:
            return False
        return answer.status_code == 200 and RunFolder(self.site.tmp_folder).tell_pool(WAKE)

    def storm(self, kills: int, *, builds_at_once: int = 6, pause_s: float = 2.0) -> None:
        """So many kills at random moments, with work to do all the while."""
        for _ in range(kills):
            for _ in range(max(0, builds_at_once - self.active())):
                self.submit()
            time.sleep(self.random.uniform(0, pause_s))
            self.kill_one()

    def all_ended(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        """The last status of every accepted build."""
        end = time.monotonic() + timeout_s
        return {
            build_id: self.service.wait_for(build_id, max(1.0, end - time.monotonic()), user=user)
            for build_id, user in self.accepted.items()
        }

    def figures(self, ended: dict[str, dict[str, Any]]) -> str:
        """What happened, in a few lines."""
        times = {
            kind: f"{len(taken)} kills, median {sorted(taken)[len(taken) // 2]:.2f} s, longest {max(taken):.2f} s"
            for kind, taken in sorted(self.ready_s.items())
        }
        outcomes = Counter(status["error_code"] or status["status"] for status in ended.values())
        return "\n".join(
            [
                f"{len(self.accepted)} builds accepted, not accepted: {dict(self.refused)}",
                f"ended: {dict(outcomes)}",
                *(f"ready again after {kind}: {text}" for kind, text in times.items()),
            ]
        )

    def check_states(self, ended: dict[str, dict[str, Any]]) -> None:
        """Builds and runs fit together, nothing was worked on twice at a time, and causes are true."""
        bound = self.site.settings.service.max_attempts
        rows = {row.id: row for row in runs(self.site)}
        for row in rows.values():
            assert row.state in ("FINISHED", "FAILED") and row.attempts <= bound, row
            assert row.error_code != "LOST_WORKER" or row.attempts == bound, row
        for build_id, run_id, state in builds(self.site):
            assert (
                build_id in self.accepted or state is not None
            )  # one whose answer was lost ends as well
            assert state == rows[run_id].state, (build_id, state, rows[run_id])
        assert set(self.accepted) <= {build_id for build_id, *_ in builds(self.site)}
        codes = {status["error_code"] for status in ended.values() if status["status"] == "FAILED"}
        assert codes <= TRUE_CODES, [
            status for status in ended.values() if status["status"] == "FAILED"
        ]
        spans: dict[str, list[Any]] = {}
        for row in sorted(rows.values(), key=lambda row: row.created_at):
            spans.setdefault(row.join_key, []).append(row)
        for same in spans.values():
            for first, second in itertools.pairwise(same):
                assert first.ended_at <= second.created_at, (first, second)
        begun = Counter(
            line.split()[-2]
            for line in pool_log(self.site)
            if " begins" in line and " run " in line
        )
        for run_id, times in begun.items():
            assert times <= rows[run_id].attempts + rows[run_id].retries, (
                run_id,
                times,
                rows[run_id],
            )

    def check_downloads(self, ended: dict[str, dict[str, Any]], *, inspected: int) -> int:
        """Every finished build's SIF comes whole; returns how many different ones there are."""
        finished = {
            status["sha256"]: status for status in ended.values() if status["status"] == "FINISHED"
        }
        for number, (sha256, status) in enumerate(sorted(finished.items())):
            answer = self.service.call(
                "GET", f"/images/download/{status['filename']}", params={"sha256": sha256}
            )
            assert answer.status_code == 200, (status, answer.text)
            assert len(answer.content) == status["size_bytes"]
            assert hashlib.sha256(answer.content).hexdigest() == sha256
            file = self.site.root / "downloaded.sif"
            file.write_bytes(answer.content)
            format.verify(file, platform=MACHINE["platform"])
            if number < inspected:
                shown = subprocess.run(
                    ["singularity", "inspect", str(file)], capture_output=True, text=True
                )
                assert shown.returncode == 0 and "org.label-schema" in shown.stdout, shown
        return len(finished)

    def check_nothing_left(self) -> None:
        """After a graceful stop and a new start: no unfinished file; after the last stop: no
        process.
        """
        self.service.process.terminate()
        self.service.process.wait(60)
        with running_service(self.site, name="last") as self.service:
            builds_folder = self.site.tmp_folder / "builds"
            until(lambda: not any(builds_folder.iterdir()), 60)
            store = self.site.tmp_folder / "store"
            until(lambda: not any((store / "incoming").iterdir()), 60)
            for file in (store / "sif").glob("*.sif"):
                assert file_sha256(file) == file.stem
        end = time.monotonic() + 60  # a pool that is just beginning ends by itself
        while left := [*self.marked(), *(process for process in self.guards if process.is_there)]:
            assert time.monotonic() < end, left
            time.sleep(0.2)
        assert not [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if (process := read_process(pid)) and self.sleeper in process.arguments
        ]

    @property
    def sleeper(self) -> str:
        """The argument of `sleep` in this site's steps: it is found in containers, too."""
        return f"1.{int(self.mark[:6], 16):09d}"


@contextlib.contextmanager
def chaos(site: Site, *, steps: int, seed: int, retry_delay_s: str = "0.5") -> Iterator[Chaos]:
    """A service with `steps` small steps that no earlier test has built, ready to be killed."""
    chance = random.Random(seed)
    mark = secrets.token_hex(8)
    site = site.with_environ(
        **{
            MARK: mark,
            "CIC_STOP_TIMEOUT_S": "0",
            "CIC_RETRY_DELAY_S": retry_delay_s,
            "CIC_WEB_PROCESSES": "2",
        }
    )
    with contextlib.ExitStack() as stack:
        for user in USERS:
            add_user(site, user, PASSWORD)
        service = stack.enter_context(running_service(site, port=free_port()))
        made = Chaos(site, chance, steps, service, stack, mark)
        for number in range(steps):
            sleep = f"sleep {made.sleeper}" if number % 3 == 0 else "true"
            site.add_step(
                "demo",
                f"step{number}",
                {
                    "eflows4hpc.yaml": "",
                    "post_inst.sh": f"#!/bin/sh\n# {secrets.token_hex()}\n{sleep}\n",
                },
            )
        yield made


def runs(site: Site) -> list[Any]:
    return _rows(
        site,
        "SELECT id, state, attempts, retries, join_key, error_code, created_at, ended_at FROM runs",
    )


def builds(site: Site) -> list[Any]:
    return _rows(site, "SELECT id, run_id, state FROM builds")


def _rows(site: Site, query: str) -> list[Any]:
    engine = sa.create_engine(site.environ["CIC_DATABASE"])
    try:
        with engine.connect() as connection:
            return list(connection.exec_driver_sql(query))
    finally:
        engine.dispose()


def pool_log(site: Site) -> list[str]:
    """What all pools of the site wrote."""
    logs = site.tmp_folder / "logs"
    return "".join(
        (logs / name).read_text("utf-8", "replace")
        for name in ("pool.log.1", "pool.log")
        if (logs / name).exists()
    ).splitlines()


def file_sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return (
            hashlib.file_digest(opened, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(opened.read()).hexdigest()
        )
