"""Run a PostgreSQL server for tests: a cluster in a temporary folder, by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

USER = "cic"


def programs() -> Path | None:
    """Return the folder with `initdb` and `postgres`, or None.

    Debian keeps it off the PATH.
    """
    newest = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])
    )
    if newest:
        return newest[-1].parent
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


class PostgreSQL:
    """One server, until `stop`.

    `prefix` is a command that runs it elsewhere, as `ip netns exec NAME`.
    """

    def __init__(self, *, host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        found = programs()
        assert found is not None, "PostgreSQL is not installed"
        self._programs, self._prefix, self._host = found, tuple(prefix), host
        self._folder = Path(tempfile.mkdtemp(prefix="cic-postgresql-"))
        self._account = _account()
        shutil.chown(self._folder, self._account)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self._run(
            "initdb",
            "--no-sync",
            "--auth=trust",
            f"--username={USER}",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            f"--pgdata={self._data}",
        )
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._prefix,
                    *self._as_user(),
                    str(self._programs / "postgres"),
                    "-D",
                    str(self._data),
                    "-h",
                    self._host,
                    "-p",
                    str(self.port),
                    "-k",
                    str(self._folder),
                    "-c",
                    "fsync=off",
                    "-c",
                    "max_connections=200",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait()

    def stop(self, *, remove: bool = True) -> None:
        """End it at once, connections or not. What was committed is there at the next start."""
        assert self._process is not None
        pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGINT)  # PostgreSQL's fast shutdown
        self._process.wait(60)
        if remove:
            shutil.rmtree(self._folder, ignore_errors=True)

    def database(self, *, template: str = "template1") -> str:
        """Return the URL of a fresh database."""
        name = f"test_{secrets.token_hex(6)}"
        self._admin(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop(self, url: str) -> None:
        self._admin(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")

    def dump(self, url: str) -> str:
        """Return all that a database holds, as text."""
        done = subprocess.run(
            [str(self._programs / "pg_dump"), "--inserts", url],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def url(self, name: str) -> str:
        return f"postgresql://{USER}@{self._host}:{self.port}/{name}"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _admin(self, statement: str) -> None:
        """Over the Unix socket: the server's network may not be ours."""
        subprocess.run(
            [
                str(self._programs / "psql"),
                "-qX",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                str(self._folder),
                "-p",
                str(self.port),
                "-U",
                USER,
                "-d",
                "postgres",
                "-c",
                statement,
            ],
            check=True,
            capture_output=True,
        )

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while subprocess.run(
            [
                str(self._programs / "pg_isready"),
                "-q",
                "-h",
                str(self._folder),
                "-p",
                str(self.port),
                "-d",
                "postgres",
                "-U",
                USER,
            ]
        ).returncode:
            assert self._process is not None and self._process.poll() is None, (
                self._folder / "log"
            ).read_text()
            assert time.monotonic() < end, (self._folder / "log").read_text()
            time.sleep(0.1)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as_user(), str(self._programs / program), *arguments],
            check=True,
            capture_output=True,
        )

    def _as_user(self) -> tuple[str, ...]:
        """PostgreSQL refuses to be run by root."""
        return (
            (
                "setpriv",
                f"--reuid={self._account}",
                "--regid=nogroup",
                "--clear-groups",
                "env",
                "HOME=/nonexistent",
            )
            if os.geteuid() == 0
            else ()
        )


def _account() -> str:
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])
