"""What was accepted or has ended is there after the machine stopped without a word.

The database lies in a file system of its own in a file. What of it has reached that file is what a
power cut leaves: a copy is taken while nothing was flushed, and looked at.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from service.db import accounts
from tests.service.conftest import Api, FakeBuilder, running_app
from tests.support.site import Site

DISK_BYTES = 64 * 1024**2


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    folder.mkdir()
    # the file system itself writes nothing down for ten minutes
    command = ["mount", "-o", "loop,commit=600", str(image), str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a power cut. This user or container may not mount a file system.")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    with mounted(image, tmp_path / "disk"):
        yield tmp_path / "disk"


def after_a_power_cut(disk: Path, name: str) -> sqlite3.Connection:
    """The database as a machine finds it that lost its power at this moment."""
    copy = disk.parent / f"{name}.img"
    shutil.copyfile(disk.parent / "disk.img", copy)
    with mounted(copy, disk.parent / name):
        shutil.copytree(disk.parent / name / "db", disk.parent / f"{name}.db")
    copy.unlink()
    return sqlite3.connect(disk.parent / f"{name}.db" / "db.sqlite")


def states(disk: Path, name: str) -> dict[str, str | None]:
    with closing(after_a_power_cut(disk, name)) as database:
        return dict(database.execute("SELECT id, state FROM builds"))


def test_nothing_accepted_or_ended_is_lost(
    site: Site, disk: Path, builder: FakeBuilder, tmp_path: Path
) -> None:
    (disk / "db").mkdir()
    os.sync()
    settings = site.with_environ(CIC_DATABASE=f"sqlite:///{disk / 'db' / 'db.sqlite'}").settings
    builder.hold.clear()
    with running_app(settings, builder) as app:
        ada = Api(app)
        first = ada.submit()
        second = ada.submit(step_id="other")
        assert states(disk, "accepted") == {first: None, second: None}

        ada.wait(second, "BUILDING")
        ada("POST", f"/build/{second}/cancel")
        assert states(disk, "cancelled")[second] == "FAILED"

        builder.hold.set()
        assert ada.wait(first)["status"] == "FINISHED"
        assert states(disk, "finished") == {first: "FINISHED", second: "FAILED"}

        made = ada.submit()
        assert states(disk, "given")[made] == "FINISHED"

        accounts.change_user(app.extensions["cic"].engine, "bob", is_active=False)
        with closing(after_a_power_cut(disk, "blocked")) as database:
            found = database.execute("SELECT is_active FROM users WHERE name = 'bob'").fetchone()
        assert found == (0,)
