"""How the service comes to life: imports, databases, commands, and the server itself."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from config.loading import PROJECT
from config.settings import Settings
from image_builder.errors import ServiceError
from service.db import accounts
from service.db.database import database_url, make_engine, writing
from service.server import server_options
from service.workers.executors import WAKE, PoolProcess, RunFolder
from tests.support.certificate import make_certificate
from tests.support.site import Site, add_user, free_port, listens, start_service


def python(
    site: Site, code: str, *, cwd: Path = PROJECT, **more: Any
) -> subprocess.CompletedProcess[str]:
    environ = {**site.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def flask(site: Site, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "builder_service", *arguments],
        cwd=PROJECT,
        env=dict(site.environ),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def users(site: Site, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return flask(site, "users", *arguments, stdin=stdin)


def database_file(site: Site) -> Path:
    return Path(site.environ["CIC_DATABASE"].removeprefix("sqlite:///"))


def test_the_seeds_three_lines_work_in_a_bare_interpreter(site: Site) -> None:
    made = python(site, "from builder_service import db\ndb.drop_all()\ndb.create_all()\n")
    assert (made.returncode, made.stdout) == (0, ""), made.stderr

    assert (
        users(site, "add", "ada", stdin="correct horse\n").returncode == 0
    )  # the migrations accept it

    assert users(site, "list").stdout == "ada\n"
    again = python(site, "from builder_service import db\ndb.drop_all()\ndb.create_all()\n")
    assert again.returncode == 0, again.stderr
    assert users(site, "list").stdout == ""


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_made_either_way_is_the_same(site: Site, tmp_path: Path) -> None:
    def shape(path: Path) -> dict[str, list[Any]]:
        connection = sqlite3.connect(path)
        names = [
            row[0]
            for row in connection.execute(
                "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
            )
        ]
        found = {
            name: sorted(row[1:3] for row in connection.execute(f"PRAGMA table_info({name})"))
            for name in names
        }
        found["its version"] = connection.execute(
            "SELECT version_num FROM alembic_version"
        ).fetchone()
        connection.close()
        return found

    assert python(site, "from builder_service import db\ndb.create_all()\n").returncode == 0
    other = site.with_environ(CIC_DATABASE=f"sqlite:///{tmp_path / 'migrated.sqlite'}")
    assert users(other, "list").returncode == 0
    assert shape(database_file(site)) == shape(database_file(other))


def test_importing_makes_nothing(site: Site) -> None:
    done = python(site, "import builder_service, threading\nprint(threading.active_count())")
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert not database_file(site).exists()
    assert not site.tmp_folder.exists()


def test_a_relative_database_lies_beside_the_service() -> None:
    assert database_url("sqlite:///db.sqlite").database == str(PROJECT / "db.sqlite")
    assert database_url("sqlite:////var/lib/cic/db.sqlite").database == "/var/lib/cic/db.sqlite"
    assert database_url("postgresql+psycopg://u:p@h/d").database == "d"


def test_processes_that_start_together_make_one_database(site: Site) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(
            threads.map(
                lambda _: python(site, "import builder_service; builder_service.create_app()"),
                range(4),
            )
        )
    assert [one.returncode for one in made] == [0] * 4, [one.stderr[-500:] for one in made]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_of_another_program_is_left_alone(site: Site) -> None:
    connection = sqlite3.connect(database_file(site))
    connection.execute("CREATE TABLE users (x)")
    connection.commit()
    connection.close()
    refused = users(site, "list")
    assert refused.returncode != 0
    assert "another program" in refused.stderr


def test_commands_for_users(site: Site) -> None:
    assert users(site, "add", "ada", stdin="correct horse\n").returncode == 0
    assert users(site, "add", "root", "--admin", stdin="correct horse").returncode == 0
    taken = users(site, "add", "Ada", stdin="correct horse\n")
    assert (taken.returncode, "already" in taken.stderr) == (1, True)
    short = users(site, "add", "bob", stdin="short\n")
    assert (short.returncode, "8 to 256" in short.stderr) == (1, True)
    assert users(site, "list").stdout == "ada\nroot\tadmin\n"
    assert users(site, "password", "ada", stdin="another horse\n").returncode == 0
    assert users(site, "password", "nobody", stdin="another horse\n").returncode == 1
    assert users(site, "remove", "ada").returncode == 0
    assert users(site, "remove", "ada").returncode == 1
    assert users(site, "list").stdout == "root\tadmin\n"


def test_commands_for_tokens(site: Site) -> None:
    assert users(site, "add", "ada", stdin="correct horse\n").returncode == 0
    made = flask(site, "tokens", "add", "ada", "laptop", "--days", "30", "--scope", "read")
    token = made.stdout.strip()
    assert token.startswith("cic_"), made.stderr
    number, name, scopes, expires, used = (
        flask(site, "tokens", "list", "ada").stdout.strip().split("\t")
    )
    assert (name, scopes, used) == ("laptop", "read", "used never")
    assert expires.startswith("expires 2")
    engine = make_engine(site.environ["CIC_DATABASE"])
    assert accounts.by_token(engine, token).name == "ada"
    assert flask(site, "tokens", "revoke", "ada", "4711").returncode == 1
    assert flask(site, "tokens", "revoke", "ada", number).returncode == 0
    assert accounts.by_token(engine, token) is None
    engine.dispose()
    assert flask(site, "tokens", "list", "nobody").returncode == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_backup_is_whole_while_the_database_is_written_to(site: Site, tmp_path: Path) -> None:
    assert users(site, "add", "ada", stdin="correct horse\n").returncode == 0
    engine = make_engine(site.environ["CIC_DATABASE"])
    copy = tmp_path / "copy.sqlite"
    with writing(engine) as connection:
        connection.exec_driver_sql(
            "UPDATE users SET name = 'eve'"
        )  # not committed: no part of the copy
        done = flask(site, "backup", str(copy))
    engine.dispose()
    assert done.returncode == 0, done.stderr
    assert copy.stat().st_mode & 0o777 == 0o600
    assert users(site.with_environ(CIC_DATABASE=f"sqlite:///{copy}"), "list").stdout == "ada\n"
    assert flask(site, "backup", str(tmp_path / "none" / "copy.sqlite")).returncode == 1


def test_a_missing_secret_stops_the_start_with_its_name(site: Site) -> None:
    without = {key: value for key, value in site.environ.items() if key != "CIC_SECRET_KEY"}
    ended = subprocess.run(
        [sys.executable, "builder_service.py"],
        cwd=PROJECT,
        env=without,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "secret_key" in ended.stderr and "CIC_SECRET_KEY" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_servers_options_follow_the_settings(settings: Settings) -> None:
    service = settings.service.model_copy(
        update={
            "host": "::1",
            "port": 8443,
            "web_processes": 3,
            "tls_certificate": Path("/c.pem"),
            "tls_key": Path("/k.pem"),
        }
    )
    options = server_options(settings.model_copy(update={"service": service}))
    assert (options["bind"], options["workers"]) == ("[::1]:8443", 3)
    assert (options["certfile"], options["keyfile"], options["worker_class"]) == (
        "/c.pem",
        "/k.pem",
        "service.serving.worker.Worker",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_over_tls_and_stops_when_told(
    site: Site, tmp_path: Path, number: signal.Signals
) -> None:
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    served = site.with_environ(
        CIC_TLS_CERTIFICATE=str(certificate),
        CIC_TLS_KEY=str(key),
        CIC_PORT=str(port),
        CIC_STOP_TIMEOUT_S="0",
    )
    add_user(served, "ada", "correct horse")
    log = tmp_path / "service.log"
    process = start_service(served, log)
    try:
        url = f"https://127.0.0.1:{port}/image_creation"
        wait_until(lambda: listens(port))
        answer = requests.get(
            f"{url}/build/",
            auth=("ada", "correct horse"),
            verify=str(certificate),
            timeout=30,
        )
        assert (answer.status_code, answer.json()["total"]) == (200, 0)
        assert "Werkzeug" not in answer.headers.get("Server", "")
    finally:
        process.send_signal(number)
        assert process.wait(60) == 0
    wait_until(lambda: not RunFolder(served.tmp_folder).tell_pool(WAKE))


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_proxys_word_counts_only_when_it_is_trusted(site: Site) -> None:
    for trusted, expected in (("0", "127.0.0.1"), ("1", "10.1.2.3")):
        behind = site.with_environ(CIC_BEHIND_PROXY=trusted)
        seen = python(
            behind,
            """
from builder_service import create_app
from flask import request
app = create_app()
@app.get("/who")
def who(): return request.remote_addr
print(app.test_client().get("/image_creation/who", headers={"X-Forwarded-For": "10.1.2.3"}).text)
""",
        )
        assert seen.stdout == f"{expected}\n", seen.stderr


def test_health(site: Site) -> None:
    code = """
from builder_service import create_app
client = create_app().test_client()
print(client.get("/image_creation/health/live").status_code)
answer = client.get("/image_creation/health/ready")
print(answer.status_code, answer.get_json().get("checks", {}).get("base_image"))
"""
    fine = python(site, code)
    assert fine.stdout.splitlines() == ["200", "200 ok"], fine.stdout + fine.stderr
    missing = python(site.with_environ(CIC_BUILD_BASE_IMAGE="localhost:1/no-such-base:1"), code)
    assert missing.stdout.startswith("200\n503 "), missing.stdout + missing.stderr
    assert "no-such-base" in missing.stdout


def test_no_pool_is_told_and_a_pool_is_enough(tmp_path: Path) -> None:
    executor = PoolProcess(tmp_path)
    with pytest.raises(ServiceError, match="No build pool"):
        executor.require_pool(patience_s=0)
    listener = RunFolder(tmp_path).listen()
    executor.require_pool(patience_s=0)
    listener.close()


def test_metrics(site: Site) -> None:
    seen = python(
        site,
        "from builder_service import create_app\n"
        "print(create_app().test_client().get('/image_creation/metrics').text)",
    )
    assert 'cic_runs{state="PENDING"} 0.0' in seen.stdout, seen.stderr
    assert "cic_queue_length 0.0" in seen.stdout


@pytest.mark.parametrize(
    ("key", "wanted", "unwanted"),
    [("CIC_DOWNLOAD_LINKS", "images/files", ""), ("CIC_PUBLIC_DOWNLOADS", "true", "false")],
)
def test_sifs_that_cannot_be_linked_stop_the_start(
    site: Site, key: str, wanted: str, unwanted: str
) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == site.root.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        site = site.with_environ(CIC_BUILD_STORAGE=folder, **{key: wanted})
        stopped = users(site, "list")
        assert stopped.returncode != 0
        assert "are on different file systems" in stopped.stderr
        assert users(site.with_environ(**{key: unwanted}), "list").returncode == 0
