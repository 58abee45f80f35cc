"""Apache with mod_wsgi, really started: the seed's own line, and the recommended one with
`download_links`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from tests.support.daemon_images import remove_images
from tests.support.site import (
    MACHINE,
    PASSWORD,
    PROJECT,
    USER,
    Service,
    Site,
    add_user,
    free_port,
    make_site,
    wait_until_alive,
)

pytestmark = pytest.mark.system

PROCESSES = 4
THREADS_OF_APACHE = 5
"""What mod_wsgi-express gives to each process when nothing is said."""
DOWNLOADS = "/image_creation/images/download"
LINKS = "/image_creation/images/files"
SIF = b"the bytes of a SIF" * 10_000
LINES = 30
SLOW = {
    "eflows4hpc.yaml": "apt:\n  - bc\n",
    # New each time, or BuildKit would remember the step from an earlier run of the tests, and be
    # done at once.
    "post_inst.sh": f'#!/bin/sh\n# {secrets.token_hex()}\nfor i in $(seq 1 {LINES}); do echo "line $i of many"; '
    "sleep 0.5; done\n",
}
REQUEST = {
    "machine": MACHINE | {"container_engine": "docker"},
    "workflow": "demo",
    "step_id": "slow",
    "push": False,
}


@dataclasses.dataclass(frozen=True)
class Apache(Service):
    """A running Apache; `process` is the parent of all its others."""

    def reload(self) -> None:
        """What `apachectl graceful` does: every other process is replaced."""
        self.process.send_signal(signal.SIGUSR1)


@pytest.fixture
def apache_site() -> Iterator[Site]:
    """A site in a folder that Apache's user may enter, which pytest's own are not."""
    root = Path(tempfile.mkdtemp(prefix="cic-apache-"))
    site = make_site(root)
    site.add_step("demo", "slow", SLOW)
    yield site
    remove_images(site)
    shutil.rmtree(root, ignore_errors=True)


def apache_user() -> tuple[str, ...]:
    """As root, Apache wants another user; the daemon's group may build."""
    if os.geteuid() != 0:
        return ()
    return (
        "--user",
        "www-data",
        "--group",
        grp.getgrgid(os.stat("/var/run/docker.sock").st_gid).gr_name,
    )


@contextlib.contextmanager
def running_apache(site: Site, alias: str) -> Iterator[Apache]:
    """`mod_wsgi-express start-server` as the README tells, with `<tmp_folder>/images/` at `alias`."""
    port, images = free_port(), site.tmp_folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    add_user(site, USER, PASSWORD)
    if os.geteuid() == 0:
        owner = pwd.getpwnam("www-data")
        subprocess.run(
            ["chown", "-R", f"{owner.pw_uid}:{owner.pw_gid}", str(site.root)], check=True
        )
    programs = f"{PROJECT / '.venv' / 'bin'}:{site.environ['PATH']}:/usr/sbin"
    log = site.root / "apache.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "mod_wsgi-express",
                "start-server",
                "--port",
                str(port),
                f"--processes={PROCESSES}",
                "--enable-sendfile",
                "--url-alias",
                alias,
                f"{images}/",
                "--server-root",
                str(site.root / "apache"),
                "--log-to-terminal",
                *apache_user(),
                "wsgi.py",
            ],
            cwd=PROJECT,
            env={**site.environ, "PATH": programs},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_alive(f"{url}/image_creation/health/live", process, log)
        yield Apache(site, url, log, process)
    finally:
        process.terminate()
        process.wait(60)


def store_sif(site: Site, filename: str) -> str:
    """Put a file into the image store as a build would; returns its sha256."""
    store = ImageStore(site.tmp_folder / "store")
    with store.temporary_path() as temporary:
        temporary.write_bytes(SIF)
        record = store.publish(
            temporary,
            ImageRecord(
                identity="sha256:" + secrets.token_hex(32),
                image_id="demo:1",
                platform="linux/amd64",
                filename=filename,
            ),
        )
    assert record.sha256 is not None
    return record.sha256


def test_the_seeds_own_line_starts_and_gives_strangers_nothing(apache_site: Site) -> None:
    store_sif(apache_site, "a.sif")
    with running_apache(apache_site, DOWNLOADS) as apache:
        assert apache.call("GET", "/image/a.sif").json()["size_bytes"] == len(SIF)
        assert apache.call("GET", "/build/", password="wrong").status_code == 401
        for path in (
            "",
            "/",
            "/a.sif",
            "/../a.sif",
            "/..%2fstore/names/a.sif",
            "/../store/names/a.sif",
        ):
            assert requests.get(f"{apache.url}{DOWNLOADS}{path}", timeout=30).status_code in (
                400,
                401,
                403,
                404,
            ), path


def test_public_downloads_are_for_everybody(apache_site: Site) -> None:
    site = apache_site.with_environ(CIC_PUBLIC_DOWNLOADS="true")
    store_sif(site, "a.sif")
    with running_apache(site, DOWNLOADS) as apache:
        wait_until_alive(f"{apache.url}{DOWNLOADS}/a.sif", apache.process, apache.log)
        answer = requests.get(f"{apache.url}{DOWNLOADS}/a.sif", timeout=30)
        assert answer.content == SIF
        assert "Apache" in answer.headers["Server"]


def test_an_authorised_download_is_sent_by_apache(apache_site: Site) -> None:
    site = apache_site.with_environ(CIC_DOWNLOAD_LINKS="images/files")
    sha256 = store_sif(site, "a.sif")
    with running_apache(site, LINKS) as apache:
        assert requests.get(f"{apache.url}{DOWNLOADS}/a.sif", timeout=30).status_code == 401
        sent_on = apache.call("GET", "/images/download/a.sif", allow_redirects=False)
        assert sent_on.status_code == 302
        link = sent_on.headers["Location"]
        assert link.startswith(f"{LINKS}/") and link.endswith("/a.sif")
        answer = requests.get(f"{apache.url}{link}", timeout=30)
        assert hashlib.sha256(answer.content).hexdigest() == sha256
        part = requests.get(f"{apache.url}{link}", timeout=30, headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, SIF[100:200])
        for path in (
            "",
            "/",
            "/a.sif",
            "/" + "0" * 48 + "/a.sif",
            link.removeprefix(LINKS).removesuffix("a.sif"),
        ):
            assert requests.get(f"{apache.url}{LINKS}{path}", timeout=30).status_code in (
                403,
                404,
            ), path


def test_a_build_survives_followers_and_a_reload(apache_site: Site) -> None:
    with running_apache(apache_site, DOWNLOADS) as apache:
        follow_through_reloads(apache, follow_s=0)


def test_followers_leave_threads_to_others(apache_site: Site) -> None:
    apache_site.add_step("demo", "slow", {"post_inst.sh": "#!/bin/sh\nsleep 600\n"})
    with running_apache(apache_site, DOWNLOADS) as apache:
        build_id = apache.call("POST", "/build/", json=REQUEST).json()["id"]
        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(
                    contextlib.closing(
                        apache.call(
                            "GET",
                            f"/build/{build_id}/log",
                            stream=True,
                            headers={"Accept": "text/event-stream"},
                        )
                    )
                )
                for _ in range(PROCESSES * THREADS_OF_APACHE * 2)
            ]
            assert {stream.status_code for stream in streams} == {200}
            for _ in range(PROCESSES * 2):
                assert apache.call("GET", f"/build/{build_id}").status_code == 200
            assert (
                apache.call("POST", f"/build/{build_id}/cancel").json()["error_code"] == "CANCELLED"
            )


@pytest.mark.endurance
def test_a_build_survives_a_follower_of_200_s(apache_site: Site) -> None:
    apache_site.add_step(
        "demo", "slow", {"post_inst.sh": SLOW["post_inst.sh"].replace("sleep 0.5", "sleep 8")}
    )
    with running_apache(apache_site, DOWNLOADS) as apache:
        follow_through_reloads(apache, follow_s=200)


def follow_through_reloads(apache: Apache, *, follow_s: float) -> None:
    """Follow a build's log over many streams, reload Apache half-way, and see every line exactly
    once.
    """
    begin = time.monotonic()
    build_id = apache.call("POST", "/build/", json=REQUEST).json()["id"]
    lines: list[str] = []
    offset, ended, reloaded = "0", False, False
    while not ended:
        try:
            with apache.call(
                "GET",
                f"/build/{build_id}/log",
                stream=True,
                headers={"Accept": "text/event-stream", "Last-Event-ID": offset},
            ) as stream:
                event: list[str] = []
                for line in stream.iter_lines(decode_unicode=True):
                    if line:
                        event.append(line)
                        continue
                    offset = next((one[4:] for one in event if one.startswith("id: ")), offset)
                    ended = ended or "event: end" in event
                    lines += [one[6:] for one in event if one.startswith("data: ")]
                    event = []
                    if not reloaded and any("line 5 of" in one for one in lines):
                        reloaded = True
                        apache.reload()
        except requests.RequestException:
            time.sleep(0.5)
    status = apache.wait_for(build_id)
    assert status["status"] == "FINISHED", (status, lines[-20:])
    assert reloaded
    assert time.monotonic() - begin >= follow_s
    told = [
        line.split("line ")[1].split(" ")[0]
        for line in lines
        if " line " in line and " of " in line and "echo" not in line
    ]
    assert told == [str(number) for number in range(1, LINES + 1)]
    whole = apache.call("GET", f"/build/{build_id}/log").text
    assert "\n".join(lines[:-1]) + "\n" == whole
    assert whole.count("--- STARTED") == 1
