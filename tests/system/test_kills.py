"""A busy service whose parts are killed, and whose database, disk or daemon goes away for a while.

What was accepted ends, with a true reason; nothing broken is offered and nothing is left over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.db.database import BUSY_TIMEOUT_S
from tests.support.daemon_images import remove_images
from tests.support.site import Site, make_site
from tests.system.kills import Chaos, chaos, runs, seed, until
from tests.system.own_docker import own_docker

pytestmark = pytest.mark.system

DISK_BYTES = 400 * 1024**2
HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    remove_images(made)


def storm(site: Site, *, kills: int, steps: int, builds_at_once: int, timeout_s: float) -> None:
    """Kill, and check all that must be true afterwards."""
    with chaos(site, steps=steps, seed=seed()) as storm:
        storm.storm(kills, builds_at_once=builds_at_once)
        ended = storm.all_ended(timeout_s)
        print(storm.figures(ended))
        storm.check_states(ended)
        assert storm.check_downloads(ended, inspected=3) > 0
        storm.check_nothing_left()


def test_a_few_kills_lose_nothing(site: Site) -> None:
    storm(site, kills=8, steps=2, builds_at_once=2, timeout_s=300)


@pytest.mark.endurance
@pytest.mark.timeout(7200)
def test_two_hundred_kills_lose_nothing(site: Site) -> None:
    """How long the service was away is printed: it says as much of what else the machine does."""
    storm(site, kills=200, steps=60, builds_at_once=6, timeout_s=1800)


def test_a_database_that_is_locked_for_10_s_costs_time_alone(site: Site) -> None:
    with chaos(site, steps=2, seed=seed()) as busy:
        busy.submit()
        until(lambda: any(state == "BUILDING" for _, state, *_ in runs(site)))
        with locked(site, 10), ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda _: busy.submit(), range(6)))
        assert busy.refused["no answer"] == 0
        all_finished(busy)


@pytest.mark.endurance
def test_a_database_that_is_locked_for_longer_than_anybody_waits(site: Site) -> None:
    with chaos(site, steps=2, seed=seed()) as busy:
        busy.submit()
        until(lambda: any(state == "BUILDING" for _, state, *_ in runs(site)))
        with locked(site, BUSY_TIMEOUT_S + 15), ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda _: busy.submit(), range(6)))
        assert busy.refused == {"503": 6}
        busy.submit()
        all_finished(busy)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for a whole site: tmp_folder, database and all."""
    folder, image = tmp_path / "disk", tmp_path / "disk.img"
    folder.mkdir()
    image.touch()
    os.truncate(image, DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)]).returncode:
        pytest.skip("NOT TESTED: a full disk. This user or container may not mount a file system.")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.endurance
@pytest.mark.parametrize("state", ["PENDING", "BUILDING", "CONVERTING"])
def test_a_full_disk_breaks_nothing_and_is_used_again_when_it_has_room(
    small_disk: Path, state: str
) -> None:
    site = make_site(small_disk / "site").with_environ(CIC_BUILD_MIN_FREE_BYTES="0")
    try:
        with chaos(site, steps=2, seed=seed()) as busy:
            if state != "PENDING":
                busy.submit()
                until(lambda: any(found == state for _, found, *_ in runs(site)), every_s=0.02)
            with full(small_disk):
                for _ in range(3):
                    busy.submit()
                time.sleep(15)
            ended = busy.all_ended(300)
            print(busy.figures(ended))
            busy.check_states(ended)
            accepted = len(busy.accepted)
            busy.submit()
            assert len(busy.accepted) == accepted + 1
            ended = busy.all_ended(300)
            assert ended[list(busy.accepted)[-1]]["status"] == "FINISHED"
            busy.check_states(ended)
            busy.check_downloads(ended, inspected=1)
            busy.check_nothing_left()
    finally:
        remove_images(site)


@pytest.mark.endurance
@pytest.mark.skipif(
    os.geteuid() != 0, reason="NOT TESTED: a daemon that goes away. A daemon of its own needs root."
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("state", ["BUILDING", "CONVERTING"])
def test_a_daemon_that_goes_away_in_the_middle_costs_time_alone(
    tmp_path: Path, state: str, number: int
) -> None:
    with own_docker() as daemon:
        site = make_site(tmp_path / "site")
        site = site.with_environ(**daemon.environ(site.environ))
        with chaos(site, steps=2, seed=seed(), retry_delay_s="5") as busy:
            busy.submit()
            until(lambda: any(found == state for _, found, *_ in runs(site)), every_s=0.02)
            with daemon.stopped(number):
                busy.submit()
                time.sleep(3)
            all_finished(busy)
            accepted = len(busy.accepted)
            busy.submit()
            assert len(busy.accepted) == accepted + 1
            all_finished(busy)
            busy.check_nothing_left()


def all_finished(busy: Chaos) -> None:
    ended = busy.all_ended(300)
    print(busy.figures(ended))
    assert {status["status"] for status in ended.values()} == {"FINISHED"}, ended
    busy.check_states(ended)
    busy.check_downloads(ended, inspected=1)


@contextlib.contextmanager
def locked(site: Site, lock_s: float) -> Iterator[None]:
    """Another process has the database for itself, for so long from the beginning of the block."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLD,
            site.environ["CIC_DATABASE"].removeprefix("sqlite:///"),
            str(lock_s),
        ],
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        yield
        assert holder.wait(lock_s + 30) == 0


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """No byte is left on this disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024**2)):
            pass
    try:
        yield
    finally:
        filler.unlink()
