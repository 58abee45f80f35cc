"""Clean-up: what goes, what stays, and that nobody who uses something loses it, in whatever process
they are.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.errors import ServiceError
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from service.app import create_app
from service.cleanup import Cleanup
from service.db import accounts, builds, tables
from service.db import runs as db_runs
from service.db.database import make_engine, now
from service.logs.folder import FolderLogs
from tests.conftest import PROJECT
from tests.service.conftest import PASSWORD, Api
from tests.service.test_store import finish, new, outcome

DAY_S = 86400.0


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """The database with its tables and the user ada; no pool is at work on it."""
    create_app(settings).extensions["cic"].engine.dispose()
    made = make_engine(settings.service.database)
    if accounts.by_name(made, "ada") is None:
        accounts.add_user(made, "ada", PASSWORD)
    yield made
    made.dispose()


@pytest.fixture
def images(settings: Settings) -> ImageStore:
    return ImageStore(settings.library.build.tmp_folder / "store")


def limited(settings: Settings, **limits: object) -> Settings:
    return settings.model_copy(update={"service": settings.service.model_copy(update=limits)})


def publish(
    images: ImageStore, content: bytes, name: str, *, days_ago: float = 0.0, identity: str = ""
) -> str:
    """A stored SIF that was last used so many days ago; its sha256."""
    sha256 = hashlib.sha256(content).hexdigest()
    record = ImageRecord(
        identity=identity or sha256, image_id="a:1", platform="linux/amd64", filename=name
    )
    with images.using(record.identity), images.temporary_path() as temporary:
        temporary.write_bytes(content)
        images.publish(temporary, record)
    age(images, days_ago)
    return sha256


def age(images: ImageStore, days_ago: float) -> None:
    """Make whatever was last used today, used so many days ago."""
    for path in images.root.rglob("*"):
        if path.is_file() and time.time() - path.stat().st_mtime < DAY_S / 2:
            os.utime(path, (time.time() - days_ago * DAY_S,) * 2)


def cleaned(
    engine: Engine,
    settings: Settings,
    images: ImageStore,
    *kinds: str,
    dry_run: bool = False,
    **limits: object,
) -> list[tuple[str, int]]:
    """Names and sizes of what a clean-up with these limits removed, of these kinds."""
    cleanup = Cleanup(engine, limited(settings, **limits), images)
    return [
        (item.name.split()[0], item.size_bytes)
        for item in cleanup.run(dry_run=dry_run)
        if item.kind in kinds
    ]


def test_by_default_only_what_nobody_can_reach_goes(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    replaced = publish(images, b"old", "moved.sif", days_ago=40, identity="a" * 64)
    publish(images, b"newer", "moved.sif", days_ago=39, identity="b" * 64)
    publish(images, b"lately", "lately.sif", days_ago=20, identity="c" * 64)
    publish(images, b"later", "lately.sif", days_ago=19, identity="d" * 64)
    assert cleaned(engine, settings, images, "SIF", dry_run=True) == [("moved.sif", 3)]
    assert len(images.images()) == 4
    assert cleaned(engine, settings, images, "SIF") == [("moved.sif", 3)]
    assert images.by_sha256(replaced) is None and not images.path_of(replaced).exists()
    assert len(images.images()) == 3 and set(images.names()) == {"moved.sif", "lately.sif"}
    assert cleaned(engine, settings, images, "SIF") == []


def test_what_a_build_holds_is_reachable_until_its_user_deletes_the_build(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    sha256 = publish(images, b"old", "a.sif", days_ago=40)
    publish(images, b"new", "a.sif", days_ago=40)
    build = builds.create_finished(
        engine, new(), builds.Limits(queued_builds=9), outcome(sha256=sha256)
    )
    assert cleaned(engine, settings, images, "SIF") == []
    assert builds.delete_build(engine, build)
    assert cleaned(engine, settings, images, "SIF") == [("a.sif", 3)]


def test_what_was_not_used_for_long_goes_with_its_name(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    publish(images, b"one", "old.sif", days_ago=400)
    publish(images, b"two", "read.sif", days_ago=400)
    publish(images, b"three", "asked.sif", days_ago=400, identity="a" * 64)
    publish(images, b"four", "new.sif", days_ago=300)
    with images.opened(hashlib.sha256(b"two").hexdigest()), images.using("a" * 64):
        pass
    assert cleaned(engine, settings, images, "SIF", keep_unused_s=365 * DAY_S) == [("old.sif", 3)]
    assert set(images.names()) == {"read.sif", "asked.sif", "new.sif"}


def test_beyond_a_size_the_least_useful_go_first(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    for number, name in enumerate(("a.sif", "b.sif", "c.sif")):
        publish(images, name.encode() * 200, name, days_ago=9 - number)
    publish(images, b"x" * 1000, "moved.sif", days_ago=5)
    publish(images, b"y" * 1000, "moved.sif", days_ago=4)
    pinned = hashlib.sha256(b"a.sif" * 200).hexdigest()
    images.pin(pinned)
    limits = {"max_images_bytes": 3000, "keep_unreferenced_s": 365 * DAY_S}
    assert cleaned(engine, settings, images, "SIF", dry_run=True, **limits) == [
        ("moved.sif", 1000),
        ("b.sif", 1000),
    ]
    assert cleaned(engine, settings, images, "SIF", **limits) == [
        ("moved.sif", 1000),
        ("b.sif", 1000),
    ]
    assert set(images.names()) == {"a.sif", "c.sif", "moved.sif"}
    assert {name for name, _ in cleaned(engine, settings, images, "SIF", max_images_bytes=0)} == {
        "c.sif",
        "moved.sif",
    }
    assert images.by_sha256(pinned) is not None


def test_what_was_just_used_stays_whatever_the_limits(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    publish(images, b"one", "a.sif")
    everything = {"max_images_bytes": 0, "keep_unused_s": 0, "keep_unreferenced_s": 0}
    assert cleaned(engine, settings, images, "SIF", "texts", **everything) == []


def test_texts_go_when_no_image_is_left(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    gone, kept, lately = "1" * 64, "2" * 64, "3" * 64
    publish(images, b"one", "a.sif", identity=kept)
    for identity in (gone, kept):
        images.keep_documents(identity, {"spack.lock": "{}"})
    age(images, 40)
    for identity in (gone, kept):
        os.utime(images.root / "documents" / identity, (time.time() - 40 * DAY_S,) * 2)
    images.keep_documents(lately, {"spack.lock": "{}"})
    assert cleaned(engine, settings, images, "texts", dry_run=True) == [(gone, 2)]
    assert cleaned(engine, settings, images, "texts") == [(gone, 2)]
    assert images.documents(gone) == () and images.documents(kept) == images.documents(lately) == (
        "spack.lock",
    )


def test_logs_go_by_age_and_by_size_and_never_those_of_builds_that_go_on(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    folder = settings.library.build.tmp_folder
    (folder / "logs").mkdir(exist_ok=True)
    runs = []
    for number in range(3):
        _, run = builds.create_or_join(engine, new(f"r{number}"), builds.Limits(queued_builds=9))
        runs.append(run)
        FolderLogs(folder / "logs").of(run).path.write_bytes(b"x" * 100)
    (folder / "logs" / "pool.log").write_bytes(b"x" * 1000)
    for run, days in zip(runs[:2], (20, 10), strict=True):
        assert db_runs.claim(engine, "me", max_active_per_user=9) == run
        finish(engine, run, "me")
        with engine.begin() as connection:
            connection.execute(
                tables.RUNS.update()
                .where(tables.RUNS.c.id == run)
                .values(ended_at=now() - datetime.timedelta(days=days))
            )
    assert cleaned(engine, settings, images, "log") == []
    assert cleaned(engine, settings, images, "log", dry_run=True, keep_logs_s=15 * DAY_S) == [
        (runs[0], 100)
    ]
    assert cleaned(engine, settings, images, "log", keep_logs_s=15 * DAY_S) == [(runs[0], 100)]
    assert cleaned(engine, settings, images, "log", max_logs_bytes=150) == []
    assert cleaned(engine, settings, images, "log", max_logs_bytes=0) == [(runs[1], 100)]
    assert {path.name for path in (folder / "logs").iterdir()} == {f"{runs[2]}.log", "pool.log"}


@contextlib.contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has said `ready`. It is killed at the end, if it is still there."""
    started = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=PROJECT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert started.stdout is not None and started.stdin is not None
    try:
        assert started.stdout.readline() == "ready\n"
        yield started
    finally:
        started.kill()
        started.wait()
        started.stdout.close()
        started.stdin.close()


def test_the_folder_of_a_build_stays_until_its_process_is_gone(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    folder = settings.library.build.tmp_folder / "builds" / "cli-one"
    code = (
        "import sys, time; from pathlib import Path; from image_builder.host.workspace import made_workspace\n"
        "with made_workspace(Path(sys.argv[1])) as space:\n"
        "    (space.scratch / 'file').write_bytes(b'x' * 50); print('ready', flush=True); time.sleep(600)\n"
    )
    with process(code, folder) as build:
        assert cleaned(engine, settings, images, "build folder") == []
        build.send_signal(signal.SIGKILL)
        build.wait()
        assert cleaned(engine, settings, images, "build folder", dry_run=True) == [("cli-one", 50)]
        assert folder.exists()
        assert cleaned(engine, settings, images, "build folder") == [("cli-one", 50)]
        assert not folder.exists()


def test_a_download_in_another_process_keeps_its_file(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    content = os.urandom(300_000)
    sha256 = publish(images, content, "a.sif", days_ago=400)
    code = (
        "import hashlib, sys; from pathlib import Path; from image_builder.store.folder import ImageStore\n"
        "with ImageStore(Path(sys.argv[1])).opened(sys.argv[2]) as file:\n"
        "    digest = hashlib.sha256(file.read(1000)); print('ready', flush=True); sys.stdin.readline()\n"
        "    digest.update(file.read()); print(digest.hexdigest(), flush=True)\n"
    )
    with process(code, images.root, sha256) as download:
        age(images, 400)  # not that it was used just now keeps it, but that it is being read
        assert cleaned(engine, settings, images, "SIF", keep_unused_s=DAY_S) == []
        assert download.stdin is not None and download.stdout is not None
        download.stdin.write("\n")
        download.stdin.flush()
        assert download.stdout.readline() == f"{sha256}\n"
    assert cleaned(engine, settings, images, "SIF", keep_unused_s=DAY_S) == [
        ("a.sif", len(content))
    ]


def test_a_link_that_was_handed_out_keeps_its_file(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    from service import downloads

    sha256 = publish(images, b"one", "a.sif", days_ago=400)
    folder = settings.library.build.tmp_folder / "images"
    link = folder / downloads.make_link(images.path_of(sha256), "a.sif", folder, "secret")
    assert cleaned(engine, settings, images, "SIF", keep_unused_s=DAY_S) == []
    os.utime(link.parent, (time.time() - downloads.LINK_LIFE_S - 60,) * 2)
    downloads.sweep_links(folder)
    assert cleaned(engine, settings, images, "SIF", keep_unused_s=DAY_S) == [("a.sif", 3)]


def test_an_image_that_is_just_being_given_to_a_build_stays(
    ada: Api,
    engine: Engine,
    settings: Settings,
    images: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between finding an image and writing down who has it, a clean-up comes along that would take
    everything.
    """
    ada.wait(ada.submit())
    write_down = builds.create_finished
    came = []

    def slowly(*arguments: object) -> str:
        cleanup = Cleanup(engine, limited(settings, max_images_bytes=0), images, grace_s=0)
        came.append([item.kind for item in cleanup.run() if item.kind == "SIF"])
        return write_down(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builds, "create_finished", slowly)
    status = ada.status(ada.submit())
    assert came == [[]] and status["status"] == "FINISHED"
    assert images.by_sha256(status["sha256"]) is not None
    cleanup = Cleanup(engine, limited(settings, max_images_bytes=0), images, grace_s=0)
    assert "SIF" in [
        item.kind for item in cleanup.run()
    ]  # and afterwards nothing keeps it but the grace


def test_there_is_one_clean_up_at_a_time(
    engine: Engine, settings: Settings, images: ImageStore
) -> None:
    for number in range(2):
        publish(images, f"old {number}".encode(), "a.sif", days_ago=40)
    publish(images, b"new", "a.sif", days_ago=40)
    first = Cleanup(engine, settings, images).run()
    next(item for item in first if item.kind == "SIF")
    with pytest.raises(ServiceError, match="Another clean-up"):
        next(Cleanup(engine, settings, images).run())
    assert [item.kind for item in first if item.kind == "SIF"] == ["SIF"]
    assert cleaned(engine, settings, images, "SIF") == []


NAMES = ("a.sif", "b.sif")


def _build_often(root: Path, number: int, rounds: int) -> None:
    """What builds do: use what is stored of an identity, or make it; name it, and find it whole
    then.
    """
    images = ImageStore(root)
    for turn in range(rounds):
        identity = f"{turn % 4:064x}"
        content = identity.encode() * 500
        wanted = ImageRecord(
            identity=identity, image_id="a:1", platform="linux/amd64", filename=NAMES[turn % 2]
        )
        with images.using(identity):
            earlier = images.by_identity(identity)
            if earlier is None:
                with images.temporary_path() as temporary:
                    temporary.write_bytes(content)
                    earlier = images.publish(temporary, wanted)
            else:
                earlier = images.point(earlier.model_copy(update={"filename": wanted.filename}))
            with images.opened(earlier.sha256 or "") as file:
                assert file.read() == content, (number, turn)


def _clean_often(root: Path, database: str, settings: Settings, rounds: int) -> None:
    engine = make_engine(database)
    greedy = limited(settings, max_images_bytes=0, keep_unreferenced_s=0)
    for _ in range(rounds):
        with contextlib.suppress(ServiceError):  # another one is at work
            for _ in Cleanup(engine, greedy, ImageStore(root), grace_s=0).run():
                pass
    engine.dispose()


def test_builds_find_what_they_named_while_greedy_clean_ups_go_on(
    engine: Engine, settings: Settings, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")  # only files are of interest here
    context = multiprocessing.get_context("spawn")
    database = settings.service.database
    builders = [
        context.Process(target=_build_often, args=(images.root, number, 60)) for number in range(3)
    ]
    cleaners = [
        context.Process(target=_clean_often, args=(images.root, database, settings, 10**6))
        for _ in range(2)
    ]
    for started in (*builders, *cleaners):
        started.start()
    try:
        for turn in range(
            12
        ):  # clean-ups that are killed anywhere, and others that come after them
            builders[0].join(0.15 + turn * 0.017)
            cleaners[0].kill()
            cleaners[0].join()
            for name, found in images.names().items():
                with (
                    contextlib.suppress(FileNotFoundError),
                    images.opened(found.sha256 or "") as file,
                ):
                    assert hashlib.sha256(file.read()).hexdigest() == found.sha256, name
            cleaners[0] = context.Process(
                target=_clean_often, args=(images.root, database, settings, 10**6)
            )
            cleaners[0].start()
        for builder in builders:
            builder.join()
    finally:
        for started in (*builders, *cleaners):
            started.kill()
            started.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    _clean_often(images.root, database, settings, 1)
    assert images.images() == [] and images.names() == {}
    assert not list((images.root / "incoming").iterdir()) and not list(
        (images.root / "sif").iterdir()
    )


def test_commands(engine: Engine, settings: Settings, images: ImageStore) -> None:
    def flask(*arguments: str) -> str:
        app = create_app(settings)
        done = app.test_cli_runner().invoke(args=arguments)
        app.extensions["cic"].engine.dispose()
        return done.output if done.exit_code == 0 else f"failed: {done.output}"

    old = publish(images, b"old", "a.sif", days_ago=40)
    other = publish(images, b"other", "a.sif", days_ago=40)
    assert flask("images", "pin", old) == f"{old} stays.\n"
    assert flask("images", "pin", "a.sif") == "a.sif stays.\n"
    assert "failed" in flask("images", "pin", "b.sif") and "failed" in flask(
        "images", "pin", "../../etc/passwd"
    )
    assert f"a.sif\t0.0 kB\t{other}\tused " in (
        listed := flask("images", "list")
    ) and listed.endswith("pinned\n")
    assert old not in flask("cleanup", "--dry-run")
    assert "failed" in flask("images", "remove", "a.sif")
    flask("images", "unpin", old)
    said = flask("cleanup", "--dry-run")
    assert (
        f"SIF\ta.sif {old}\t0.0 kB\tno name and no build" in said
        and "Would remove 1 things" in said
    )
    assert images.by_sha256(old) is not None
    assert f"SIF\ta.sif {old}\t" in flask("cleanup") and images.by_sha256(old) is None
    flask("images", "unpin", "a.sif")
    assert flask("images", "remove", "a.sif") == "Removed a.sif.\n" and images.names() == {}
