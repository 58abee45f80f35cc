"""The store of finished images: whole files, names that always mean one, and nothing lost to a
neighbour.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from image_builder.settings import BuildSettings, RegistrySettings
from image_builder.store import folder as store_folder
from image_builder.store.folder import ImageStore
from image_builder.store.image_store import open_images
from image_builder.store.record import ImageRecord
from tests.conftest import PROJECT
from tests.support.images_contract import *  # noqa: F403  the tests of the contract
from tests.support.images_contract import IDENTITY, NAME, OTHER_IDENTITY, publish, record, sha256


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def images(store: ImageStore) -> ImageStore:
    """For the contract."""
    return store


def everything_in(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_a_list_follows_what_other_stores_do(store: ImageStore) -> None:
    """Each list remembers what it has read, and none is behind what another process wrote."""
    other = ImageStore(store.root)
    assert store.names() == {}
    first = publish(other, b"one")
    assert store.names() == {NAME: first} and store.images() == [first]
    second = publish(other, b"two", record(OTHER_IDENTITY))
    other.point(first.model_copy(update={"filename": "other.sif"}))
    assert store.names() == {
        NAME: second,
        "other.sif": first.model_copy(update={"filename": "other.sif"}),
    }
    other.remove(second.sha256 or "")
    assert list(store.names()) == ["other.sif"] and len(store.images()) == 1


@pytest.mark.slow
def test_lists_are_made_while_images_come_and_go(store: ImageStore) -> None:
    context = multiprocessing.get_context("spawn")
    changing = context.Process(target=_publish_and_remove, args=(store.root, 60))
    changing.start()
    while changing.is_alive():
        for found in (*store.names().values(), *store.images()):
            assert found.size_bytes == 4
        store.identities()
    changing.join()
    assert changing.exitcode == 0


def _publish_and_remove(root: Path, rounds: int) -> None:
    store = ImageStore(root)
    for turn in range(rounds):
        store.remove(publish(store, f"{turn:04}".encode()).sha256 or "")


def test_a_list_does_not_read_again_what_did_not_change(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, b"one")
    publish(store, b"two", record(OTHER_IDENTITY, "other.sif"))
    read: list[Path] = []
    really_read = store_folder._read

    def counted(path: Path) -> ImageRecord | None:
        read.append(path)
        return really_read(path)

    monkeypatch.setattr(store_folder, "_read", counted)
    first = store.names()
    assert len(read) == 2 and store.names() == first and len(read) == 2
    publish(store, b"three", record(OTHER_IDENTITY, "other.sif"))
    read.clear()  # the write looks at what the name means, too
    store.names()
    assert [path.name for path in read] == ["other.sif"]


def test_everything_is_on_the_disk_before_its_name_is(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SIF's bytes, then its name in the folder, then the record's bytes, and so on: a machine
    that loses its power anywhere offers nothing that is not whole.
    """
    told: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def kind_of(path: str) -> str:
        return (
            Path(path).parent.name
            if Path(path).suffix in (".sif", ".json", ".new")
            else Path(path).name
        )

    def heard_fsync(descriptor: int) -> None:
        told.append(("fsync", kind_of(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def heard_replace(old: Path, new: Path) -> None:
        told.append(("rename", kind_of(str(new))))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", heard_fsync)
    monkeypatch.setattr(os, "replace", heard_replace)
    with store.temporary_path() as temporary:
        temporary.write_bytes(b"one")
        writing = temporary.parent.name
        store.publish(temporary, record())
    into = [
        step
        for folder in ("sif", "records", "names")
        for step in (("fsync", folder), ("rename", folder), ("fsync", folder))
    ]
    assert told == [("fsync", writing), ("rename", "sif"), ("fsync", "sif"), *into]


def test_nothing_else_is_readable_for_others(store: ImageStore) -> None:
    publish(store, b"one")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path_of(sha256(b"one")).stat().st_mode) == 0o640


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_sif_that_is_gone_or_cut_is_not_offered(store: ImageStore, damage: str) -> None:
    path = store.path_of(publish(store, b"one").sha256 or "")
    path.unlink() if damage == "gone" else path.write_bytes(b"on")
    assert (
        store.by_name(NAME)
        is store.by_identity(IDENTITY)
        is store.by_sha256(sha256(b"one"))
        is None
    )
    assert store.images() == [] and store.names() == {}


def test_a_record_that_is_none_counts_as_none(store: ImageStore) -> None:
    publish(store, b"one")
    for path in (store.root / "names" / NAME, store.root / "records" / ("a" * 64 + ".json")):
        path.write_text('{"identity": "half')
    assert store.by_name(NAME) is store.by_identity(IDENTITY) is None
    assert publish(store, b"one") == store.by_name(NAME)


def test_what_was_not_published_leaves_nothing(store: ImageStore) -> None:
    with contextlib.suppress(RuntimeError), store.temporary_path() as temporary:
        temporary.write_bytes(b"half")
        (temporary.parent / "helper").write_bytes(b"x")
        assert len(everything_in(store.root)) == 2
        raise RuntimeError
    assert everything_in(store.root) == set()


def test_a_sif_that_is_read_stays_and_an_open_one_survives_its_name(store: ImageStore) -> None:
    publish(store, b"one")
    with store.opened(sha256(b"one")) as first, store.opened(sha256(b"one")):
        assert not store.remove(sha256(b"one"))
        publish(store, b"two")
        assert first.read() == b"one"
    with store.path_of(sha256(b"one")).open("rb") as unlocked:
        assert store.remove(sha256(b"one"))
        assert unlocked.read() == b"one"
    with pytest.raises(FileNotFoundError), store.opened(sha256(b"one")):
        pass


def test_a_sweep_takes_what_a_killed_writer_left_and_nothing_of_a_living_one(
    store: ImageStore,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from image_builder.store.folder import ImageStore\n"
        "with ImageStore(Path(sys.argv[1])).temporary_path() as path:\n"
        "    path.write_bytes(b'x' * 1000); print('ready', flush=True); time.sleep(600)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "ready\n"
        assert store.sweep() == 0
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    published = publish(store, b"one")
    (store.root / "sif" / ("c" * 64 + ".sif")).write_bytes(b"killed before its record")
    (store.root / "names" / ".0.new").write_bytes(b"half a record")
    with store.temporary_path() as mine:
        mine.write_bytes(b"mine")
        assert store.sweep() == 1000 + len(b"killed before its record") + len(b"half a record")
        assert mine.read_bytes() == b"mine"
    assert store.sweep() == 0 and store.images() == [published]


def _publish_often(root: Path, number: int, rounds: int) -> None:
    store = ImageStore(root)
    for turn in range(rounds):
        publish(store, f"{number} {turn}".encode() * 1000)


@pytest.mark.slow
def test_a_name_always_means_a_whole_file_while_many_processes_replace_it(
    store: ImageStore,
) -> None:
    publish(store, b"first")
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_publish_often, args=(store.root, number, 25)) for number in range(3)
    ]
    for writer in writers:
        writer.start()
    looked = 0
    while any(writer.is_alive() for writer in writers):
        found = store.by_name(NAME)
        assert found is not None and found.sha256 is not None
        assert sha256(store.path_of(found.sha256).read_bytes()) == found.sha256
        looked += 1
    for writer in writers:
        writer.join()
    assert looked and [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(store.images()) == 76 and store.sweep() == 0


@pytest.mark.slow
def test_a_publisher_that_is_killed_anywhere_leaves_no_broken_name(store: ImageStore) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.unit.store.test_store import _publish_often\n"
        "print('ready', flush=True); _publish_often(Path(sys.argv[1]), int(sys.argv[2]), 10**6)\n"
    )
    for number in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(store.root), str(number)],
            stdout=subprocess.PIPE,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": "."},
        )
        assert writer.stdout is not None and writer.stdout.readline()
        time.sleep(0.05 + number * 0.013)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        store.sweep()
        for name, found in store.names().items():
            assert (
                found.sha256 and sha256(store.path_of(found.sha256).read_bytes()) == found.sha256
            ), name
        assert not list((store.root / "incoming").iterdir())
    assert publish(store, b"after") == store.by_name(NAME)


def test_machines_share_a_folder_that_both_name(tmp_path: Path) -> None:
    here, there = (
        open_images(
            BuildSettings(
                tmp_folder=tmp_path / name,
                builder_home=tmp_path,
                base_image="base:1",
                storage=str(tmp_path / "shared"),
            ),
            RegistrySettings(),
        )
        for name in ("here", "there")
    )
    made = publish(here, b"one")
    assert there.by_name(NAME) == made
    with there.opened(made.sha256 or "") as file:
        assert file.read() == b"one" and not here.remove(made.sha256 or "")


@pytest.mark.parametrize(
    "storage", ["", "store", "./store", "oras://", "docker://host/name", "oras://host"]
)
def test_storage_is_one_of_three_things(storage: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="must be folder, a path that begins with /"):
        BuildSettings(
            tmp_folder=tmp_path, builder_home=tmp_path, base_image="base:1", storage=storage
        )
