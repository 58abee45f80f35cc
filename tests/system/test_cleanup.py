"""Clean-up against the real daemon: which images go, and how the build cache is asked."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker.errors
import pytest
import requests
from sqlalchemy.engine import Engine

from image_builder.docker import buildx, label_names
from image_builder.docker import daemon as our_docker
from image_builder.docker.daemon import DaemonImage
from image_builder.host.process import run
from image_builder.sif import docker_export
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from service.cleanup import Cleanup
from service.db.accounts import add_user
from service.db.database import make_engine
from tests.support.site import Site, running_service

pytestmark = pytest.mark.system
EMPTY_TAR = bytes(10240)


class Daemon:
    """Images of a few bytes in the daemon, labelled as builds label theirs, and known to a store."""

    def __init__(self, folder: Path, images: ImageStore) -> None:
        self.folder, self.images = folder, images
        self.prefix = f"cic-test-cleanup-{secrets.token_hex(4)}"
        self.made: dict[str, str] = {}

    def make(
        self, title: str, *, name: str = "", workflow: str = "demo", is_known: bool = True
    ) -> str:
        identity = secrets.token_hex(32)
        (self.folder / "file").write_text(identity)
        (self.folder / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
        subprocess.run(
            [
                "docker",
                "buildx",
                "build",
                "--quiet",
                "--provenance=false",
                "--output=type=docker",
                f"--label={label_names.IDENTITY}=sha256:{identity}",
                f"--label={label_names.WORKFLOW}={workflow}",
                f"--iidfile={self.folder / 'id'}",
                str(self.folder),
            ],
            check=True,
            capture_output=True,
        )
        self.made[title] = (self.folder / "id").read_text().strip()
        if name:
            our_docker.tag_image(self.made[title], f"{self.prefix}/{name}:1")
        if is_known:
            self.images.record(
                ImageRecord(identity=f"sha256:{identity}", image_id=title, platform="linux/amd64")
            )
        return identity

    def left(self) -> set[str]:
        with our_docker.daemon() as client:
            there = {image["Id"] for image in client.api.images(all=True)}
        return {title for title, image in self.made.items() if image in there}

    def remove(self) -> None:
        for image in our_docker.made_images():
            if image.id in self.made.values():
                our_docker.remove_made_image(image)


@pytest.fixture
def daemon(site: Site) -> Iterator[Daemon]:
    folder = site.root / "tiny"
    folder.mkdir()
    made = Daemon(folder, ImageStore(site.settings.library.build.tmp_folder / "store"))
    yield made
    made.remove()


@pytest.fixture
def engine(site: Site) -> Iterator[Engine]:
    from builder_service import create_app

    create_app(site.settings).extensions["cic"].engine.dispose()
    made = make_engine(site.settings.service.database)
    add_user(made, "ada", "correct horse battery")
    yield made
    made.dispose()


def cleaned(
    site: Site, engine: Engine, daemon: Daemon, *, dry_run: bool = False, **limits: object
) -> list[str]:
    service = site.settings.service.model_copy(update=limits)
    cleanup = Cleanup(
        engine, site.settings.model_copy(update={"service": service}), daemon.images, grace_s=0
    )
    return [
        item.kind for item in cleanup.run(dry_run=dry_run) if item.kind in ("docker image", "texts")
    ]


def test_images_that_nobody_can_name_go_and_what_is_used_pinned_or_not_ours_stays(
    site: Site, engine: Engine, daemon: Daemon
) -> None:
    daemon.make("nameless")
    daemon.make("named", name="named")
    with daemon.images.using(daemon.make("killed before it was checked", is_known=False)):
        pass
    daemon.make("foreign", is_known=False)
    daemon.make("base", workflow="BASE")
    daemon.images.pin(daemon.make("pinned"))
    in_use = daemon.make("in use")
    daemon.make("in a container")
    with our_docker.daemon() as client:
        container = client.containers.create(daemon.made["in a container"], command=["/x"])
    try:
        with daemon.images.using(in_use):
            assert (
                cleaned(site, engine, daemon, dry_run=True, keep_unreferenced_s=0).count(
                    "docker image"
                )
                >= 1
            )
            assert len(daemon.left()) == 8
            assert sorted(cleaned(site, engine, daemon, keep_unreferenced_s=0)) == 2 * [
                "docker image"
            ] + 2 * ["texts"]
            assert daemon.left() == {
                "named",
                "foreign",
                "base",
                "pinned",
                "in use",
                "in a container",
            }
    finally:
        container.remove()
    cleaned(site, engine, daemon, keep_unreferenced_s=0)
    assert daemon.left() == {"named", "foreign", "base", "pinned"}
    assert cleaned(site, engine, daemon, keep_unreferenced_s=0, keep_unused_s=10**6) == []
    assert cleaned(site, engine, daemon, keep_unreferenced_s=0, keep_unused_s=0) == [
        "docker image",
        "texts",
    ]
    assert daemon.left() == {"foreign", "base", "pinned"}


def test_a_slow_download_ends_well_whatever_happens_to_its_file(
    site: Site, engine: Engine, daemon: Daemon
) -> None:
    """While a client reads, its name is given to another file, and a clean-up comes that would take
    everything.
    """
    content = os.urandom(40_000_000)
    images = daemon.images

    def put(body: bytes, identity: str) -> str:
        with images.temporary_path() as temporary:
            temporary.write_bytes(body)
            return (
                images.publish(
                    temporary,
                    ImageRecord(
                        identity=identity, image_id="a:1", platform="linux/amd64", filename="a.sif"
                    ),
                ).sha256
                or ""
            )

    first = put(content, "a" * 64)
    limits = {"max_images_bytes": 0, "keep_unreferenced_s": 0}
    with running_service(site) as service:
        add_user(engine, "bob", "correct horse battery")
        with requests.get(
            f"{service.url}/image_creation/images/download/a.sif",
            stream=True,
            timeout=60,
            auth=("bob", "correct horse battery"),
        ) as answer:
            received = answer.raw.read(1_000_000)
            second = put(b"another one", "b" * 64)
            cleaned(site, engine, daemon, **limits)
            assert images.by_sha256(first) is not None and images.by_sha256(second) is None
            received += answer.raw.read()
        assert received == content
        put(b"another one", "b" * 64)
        again = requests.get(
            f"{service.url}/image_creation/images/download/a.sif",
            timeout=60,
            auth=("bob", "correct horse battery"),
        )
        assert again.content == b"another one"
        deadline = time.monotonic() + 30
        while (
            images.by_sha256(first) is not None and time.monotonic() < deadline
        ):  # the server closes it soon after
            cleaned(site, engine, daemon, **limits)
    assert images.by_sha256(first) is None


def test_all_names_of_an_image_go_together(daemon: Daemon) -> None:
    daemon.make("two", name="one")
    our_docker.tag_image(daemon.made["two"], f"{daemon.prefix}/two:1")
    found = next(image for image in our_docker.made_images() if image.id == daemon.made["two"])
    assert len(found.names) == 2
    assert our_docker.remove_made_image(found) and daemon.left() == set()
    with our_docker.daemon() as client, pytest.raises(docker.errors.ImageNotFound):
        client.images.get(f"{daemon.prefix}/one:1")
    gone: DaemonImage = found
    assert our_docker.remove_made_image(gone)


def test_images_that_go_while_one_looks_are_no_fault() -> None:
    """Builds and tests elsewhere on the machine remove images at any time."""
    identity, name = f"sha256:{secrets.token_hex(32)}", f"cic-test-going-{secrets.token_hex(4)}"
    done = threading.Event()

    def come_and_go() -> None:
        with our_docker.daemon() as client:
            for _ in range(40):
                made = client.api.import_image_from_data(
                    EMPTY_TAR,
                    repository=name,
                    changes=[f"LABEL {label_names.IDENTITY}={identity}"],
                )
                client.api.tag(name, docker_export.REPOSITORY, secrets.token_hex(4))
                client.images.remove(json.loads(made)["status"], force=True)
        done.set()

    with ThreadPoolExecutor(1) as executor:
        coming = executor.submit(come_and_go)
        while not done.is_set() and not coming.done():
            our_docker.find_by_identity(identity)
            docker_export.sweep()
        coming.result()
    assert our_docker.find_by_identity(identity) is None


def test_the_build_cache_is_measured_and_what_fits_is_left_alone(
    site: Site, engine: Engine, daemon: Daemon
) -> None:
    """The machine's daemon is not ours to empty: it is asked to keep more than it has."""
    build = site.settings.library.build
    ask, cut = buildx.cache_command(build), buildx.cache_command(build, keep_bytes=10**15)
    assert ask.argv == ("docker", "buildx", "du")
    assert cut.argv == ("docker", "buildx", "prune", "--force", f"--keep-storage={10**15}")
    remote = build.model_copy(update={"buildx_builder": "far"})
    assert buildx.cache_command(remote).argv == ("docker", "buildx", "du", "--builder=far")
    assert buildx.cache_bytes(ask, run) > 0
    assert buildx.cache_bytes(cut, run) == 0


@pytest.fixture
def own_docker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Docker daemon of this test's own, with its own files and no network; returns a folder for
    build contexts.
    """
    root = Path(tempfile.mkdtemp(prefix="cic-"))  # its sockets need a short path
    address = f"unix://{root}/socket"
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "unshare",
                "--net",
                "dockerd",
                "--data-root",
                str(root / "data"),
                "--exec-root",
                str(root / "exec"),
                "--host",
                address,
                "--pidfile",
                str(root / "pid"),
                "--bridge",
                "none",
                "--iptables=false",
                "--ip6tables=false",
                "--storage-driver",
                "vfs",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    monkeypatch.setenv("DOCKER_HOST", address)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "version"], capture_output=True).returncode != 0:
            assert process.poll() is None and time.monotonic() < deadline, (
                root / "log"
            ).read_text()
            time.sleep(0.1)
        yield root
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(root)


def test_the_build_cache_is_cut_down_to_its_limit(
    own_docker: Path, site: Site, engine: Engine
) -> None:
    for number in range(3):
        context = own_docker / f"context-{number}"
        context.mkdir()
        (context / "file").write_bytes(os.urandom(20_000_000))
        (context / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
        subprocess.run(
            ["docker", "buildx", "build", "--quiet", "--provenance=false", str(context)],
            check=True,
            capture_output=True,
        )
    ask = buildx.cache_command(site.settings.library.build)
    before = buildx.cache_bytes(ask, run)
    assert before >= 60_000_000
    service = site.settings.service.model_copy(update={"max_build_cache_bytes": 50_000_000})
    images = ImageStore(site.settings.library.build.tmp_folder / "store")
    cleanup = Cleanup(engine, site.settings.model_copy(update={"service": service}), images)

    def freed(*, dry_run: bool) -> list[int]:
        return [
            item.size_bytes for item in cleanup.run(dry_run=dry_run) if item.kind == "build cache"
        ]

    assert freed(dry_run=True) == [before - 50_000_000]
    assert buildx.cache_bytes(ask, run) == before
    assert freed(dry_run=False) == [before - 50_000_000]
    assert 0 < buildx.cache_bytes(ask, run) <= 50_000_000
    assert freed(dry_run=False) == freed(dry_run=True) == []
