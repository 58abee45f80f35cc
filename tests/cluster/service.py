"""A service of several hosts, in miniature and real: PostgreSQL, a broker, web processes and
workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from service.db import accounts, builds, tables
from service.db.database import make_engine, reading
from tests.cluster.network import Host, Network
from tests.support.postgresql import PostgreSQL
from tests.support.site import MACHINE, PASSWORD, PROJECT, USER, Site

ENDED = ("FINISHED", "FAILED")


class Redis:
    """A Redis server without anything on disk: a restart loses all it knows."""

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder = host, folder
        self.url = f"redis://{host.address}:6379/0"
        self.start()

    def start(self) -> None:
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._host.prefix,
                    "redis-server",
                    "--port",
                    "6379",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--protected-mode",
                    "no",
                    "--bind",
                    "0.0.0.0",
                    "--dir",
                    str(self._folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class RabbitMQ:
    """A RabbitMQ server without plugins, which closes a channel that holds a message for longer
    than 5 s.
    """

    PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder = host, folder / "rabbitmq"
        self._folder.mkdir()
        self.url = f"amqp://guest:guest@{host.address}:5672//"
        (self._folder / "advanced.config").write_text(
            "[{rabbit, [{loopback_users, []}, {consumer_timeout, 5000}, {channel_tick_interval, 1000}]}].\n",
            "utf-8",
        )
        (self._folder / "enabled_plugins").write_text("[].\n", "utf-8")
        self.start()

    def start(self) -> None:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "RABBITMQ_NODENAME": "cic@localhost",
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._folder / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "none.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "LANG": "C.UTF-8",
            "ERL_CRASH_DUMP": str(self._folder / "erl_crash.dump"),
        }
        with (self._folder / "rabbitmq.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._host.prefix,
                    "unshare",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    str(self.PROGRAM),
                ],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait()

    def stop(self) -> None:
        """At once, with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + 120
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self._host.address, 5672), timeout=5),
            ):
                return
            log = (self._folder / "rabbitmq.log").read_text("utf-8", "replace")
            assert time.monotonic() < end and self._process.poll() is None, log
            time.sleep(0.2)


Broker = Redis | RabbitMQ


class Process:
    """A web process or a worker on a host of its own."""

    def __init__(
        self, name: str, host: Host, folder: Path, command: list[str], environ: Mapping[str, str]
    ) -> None:
        self.name, self.host, self._folder = name, host, folder
        self._command, self._environ = command, environ
        self.start()

    def start(self) -> None:
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.host.prefix, *self._command],
                cwd=PROJECT,
                env=dict(self._environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """At once, with its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout_s: float = 60) -> int:
        """As an operator does."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def log(self) -> str:
        return (self._folder / f"{self.name}.log").read_text("utf-8", "replace")


class Cluster:
    """The service of one test."""

    def __init__(self, site: Site, net: Network, database: PostgreSQL, broker: Broker) -> None:
        self.site, self.net, self.database, self.broker = site, net, database, broker
        self.journal = site.root / "journal"
        self.journal.touch()
        self.environ = {
            **site.environ,
            "CIC_EXECUTOR": "celery",
            "CIC_DATABASE": database.database(),
            "CIC_BROKER_URL": broker.url,
            "CIC_LOST_WORKER_AFTER_S": "10",
            "CIC_WEB_PROCESSES": "1",
            "CIC_HOST": "0.0.0.0",
            "CIC_PORT": "5000",
            "CIC_TEST_JOURNAL": str(self.journal),
            "CIC_BUILD_STORAGE": str(site.root / "images-of-all"),
        }
        self.engine: Engine = make_engine(self.environ["CIC_DATABASE"])
        self.webs: list[Process] = []
        self.processes: list[Process] = []

    def web(self) -> Process:
        made = self._start(f"web{len(self.webs)}", [sys.executable, "builder_service.py"], {})
        self.webs.append(made)
        end = time.monotonic() + 120
        while True:
            assert time.monotonic() < end and made.process.poll() is None, made.log()
            with contextlib.suppress(requests.RequestException):
                if requests.get(self.url(made, "/health/live"), timeout=5).ok:
                    break
            time.sleep(0.2)
        if accounts.by_name(self.engine, USER) is None:
            accounts.add_user(self.engine, USER, PASSWORD, is_admin=True)
        return made

    def waiting_worker(
        self, name: str, *, slots: int = 2, wait_s: float = 1.0, **environ: str
    ) -> Process:
        """A worker whose builds wait."""
        return self._start(
            name,
            [sys.executable, "-m", "tests.cluster.waiting_worker"],
            {
                "CIC_BUILD_MAX_CONCURRENT_BUILDS": str(slots),
                "CIC_TEST_WAIT_S": str(wait_s),
                "CIC_TEST_NAME": name,
                "CIC_WORKER_PLATFORMS": "linux/amd64",
                "CIC_WORKER_EMULATED_PLATFORMS": ",",
                **environ,
            },
        )

    def real_worker(self, name: str) -> Process:
        """A worker that builds."""
        return self._start(name, [sys.executable, "builder_worker.py"], {})

    def _start(self, name: str, command: list[str], environ: Mapping[str, str]) -> Process:
        folder = self.site.root / name
        folder.mkdir(exist_ok=True)
        made = Process(
            name,
            self.net.host(),
            self.site.root,
            command,
            {**self.environ, "CIC_BUILD_TMP_FOLDER": str(folder), **environ},
        )
        self.processes.append(made)
        return made

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        self.engine.dispose()

    def url(self, web: Process, path: str) -> str:
        return f"http://{web.host.address}:5000/image_creation{path}"

    def call(
        self, method: str, path: str, *, web: Process | None = None, **more: Any
    ) -> requests.Response:
        """One REST call through the given web process, or whichever answers."""
        end = time.monotonic() + 90
        for _ in range(10_000):
            for one in [web] if web is not None else self.webs:
                with contextlib.suppress(requests.RequestException):
                    answer = requests.request(
                        method, self.url(one, path), auth=(USER, PASSWORD), timeout=60, **more
                    )
                    if answer.status_code < 500:
                        return answer
            assert time.monotonic() < end, f"{method} {path}: nobody answers"
            time.sleep(0.5)
        raise AssertionError(path)

    def submit(
        self,
        step: str,
        *,
        web: Process | None = None,
        platform: str = "linux/amd64",
        architecture: str = "none",
        engine: str = "docker",
        **more: Any,
    ) -> str:
        machine = {
            **MACHINE,
            "platform": platform,
            "architecture": architecture,
            "container_engine": engine,
        }
        answer = self.call(
            "POST",
            "/build/",
            web=web,
            json={"machine": machine, "workflow": "many", "step_id": step, "push": False, **more},
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def status(self, build_id: str, web: Process | None = None) -> dict[str, Any]:
        answer = self.call("GET", f"/build/{build_id}", web=web)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait(self, build_id: str, *statuses: str, timeout_s: float = 120) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while (status := self.status(build_id))["status"] not in (statuses or ENDED):
            assert time.monotonic() < end and status["status"] not in ENDED, status
            time.sleep(0.2)
        return status

    def states(self) -> Counter[str]:
        """How many builds stand where, as the records have it."""
        with reading(self.engine) as connection:
            rows = connection.execute(
                sa.select(builds.STATUS).select_from(
                    tables.BUILDS.join(tables.RUNS, tables.BUILDS.c.run_id == tables.RUNS.c.id)
                )
            )
            return Counter(
                row[0].value if hasattr(row[0], "value") else str(row[0]) for row in rows
            )

    def wait_for_all(self, count: int, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while (states := self.states())["FINISHED"] + states["FAILED"] < count:
            assert time.monotonic() < end, (states, self.notes()[-20:])
            time.sleep(0.5)

    def notes(self) -> list[tuple[float, str, str, str]]:
        """The workers' journal: when, who, what (begin, end, stop), which run."""
        lines = [line.split() for line in self.journal.read_text().splitlines()]
        return [(float(at), who, what, run) for at, who, what, run in lines]

    def most_at_once(self) -> dict[str, int]:
        """How many builds each worker had going on at the most."""
        going_on: Counter[str] = Counter()
        most: Counter[str] = Counter()
        for _, who, what, _ in self.notes():
            going_on[who] += 1 if what == "begin" else -1
            most[who] = max(most[who], going_on[who])
        return dict(most)

    def runs(self) -> list[Any]:
        with reading(self.engine) as connection:
            return list(connection.execute(sa.select(tables.RUNS)))


@contextlib.contextmanager
def cluster(
    site: Site, net: Network, make_broker: Callable[[Host, Path], Broker] = Redis
) -> Iterator[Cluster]:
    """The records and the broker; processes are added by the test."""
    database_host = net.host()
    database = PostgreSQL(host=database_host.address, prefix=database_host.prefix)
    try:
        broker = make_broker(net.host(), site.root)
        try:
            made = Cluster(site, net, database, broker)
            try:
                yield made
            finally:
                made.stop()
        finally:
            broker.stop()
    finally:
        database.stop()
