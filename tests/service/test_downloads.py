"""Downloads: whole, in ranges, conditional, and through links."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from service import downloads
from tests.service.conftest import REQUEST, Api, FakeBuilder, running_app
from tests.support.site import Site

CONTENT = os.urandom(700_000)
NAME = "a.sif"


def put(store: ImageStore, content: bytes, name: str = NAME, identity: str = "a" * 64) -> str:
    with store.temporary_path() as temporary:
        temporary.write_bytes(content)
        record = store.publish(
            temporary,
            ImageRecord(identity=identity, image_id="a:1", platform="linux/amd64", filename=name),
        )
    assert record.sha256
    return record.sha256


@pytest.fixture
def sha256(app: Flask) -> str:
    return put(app.extensions["cic"].images, CONTENT)


def test_the_whole_file(ada: Api, sha256: str) -> None:
    answer = ada("GET", f"/images/download/{NAME}")
    assert (answer.status_code, answer.data) == (200, CONTENT)
    assert answer.headers["ETag"] == f'"{sha256}"'
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["Accept-Ranges"] == "bytes"
    head = ada("HEAD", f"/images/download/{NAME}")
    assert (head.status_code, head.data, head.content_length) == (200, b"", len(CONTENT))


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, len(CONTENT)),
        ("bytes=-100", len(CONTENT) - 100, len(CONTENT)),
        ("bytes=699999-", 699_999, 700_000),
        ("bytes=0-9999999", 0, len(CONTENT)),
        ("bytes=0-", 0, len(CONTENT)),
    ],
)
def test_a_range(ada: Api, sha256: str, asked: str, begin: int, end: int) -> None:
    answer = ada("GET", f"/images/download/{NAME}", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.data == CONTENT[begin:end]
    assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=1-2", "bytes=x", "nonsense"])
def test_what_is_no_single_range_gets_the_whole(ada: Api, sha256: str, asked: str) -> None:
    answer = ada("GET", f"/images/download/{NAME}", headers={"Range": asked})
    assert (answer.status_code, answer.data) == (200, CONTENT)


def test_a_range_beyond_the_end(ada: Api, sha256: str) -> None:
    answer = ada("GET", f"/images/download/{NAME}", headers={"Range": "bytes=700000-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */700000"


def test_if_range_of_another_file_gets_the_whole(ada: Api, sha256: str) -> None:
    def status(condition: str) -> int:
        return ada(
            "GET", f"/images/download/{NAME}", headers={"Range": "bytes=5-", "If-Range": condition}
        ).status_code

    assert status(f'"{sha256}"') == 206
    assert status('"' + "0" * 64 + '"') == 200
    assert status("Wed, 21 Oct 2015 07:28:00 GMT") == 200


def test_what_is_there_already_is_not_sent(ada: Api, sha256: str) -> None:
    assert (
        ada("GET", f"/images/download/{NAME}", headers={"If-None-Match": f'"{sha256}"'}).status_code
        == 304
    )


def test_an_earlier_file_of_a_name(ada: Api, app: Flask, sha256: str) -> None:
    put(app.extensions["cic"].images, b"newer", identity="b" * 64)
    assert ada("GET", f"/images/download/{NAME}").data == b"newer"
    assert ada("GET", f"/images/download/{NAME}?sha256={sha256}").data == CONTENT
    assert ada("GET", f"/images/download/{NAME}?sha256={'0' * 64}").status_code == 404


@pytest.mark.parametrize(
    "name", ["nope.sif", "..", "%2e%2e%2fdb.sqlite", "a.sif%00", "x" * 5000, "records", ".sif"]
)
def test_what_is_no_image_is_not_found(ada: Api, sha256: str, name: str) -> None:
    assert ada("GET", f"/images/download/{name}").status_code == 404
    assert ada("GET", f"/image/{name}").status_code == 404


def test_a_download_in_progress_keeps_its_file(ada: Api, app: Flask, sha256: str) -> None:
    images: ImageStore = app.extensions["cic"].images
    answer = ada.client.get(
        f"/image_creation/images/download/{NAME}", headers=ada.headers, buffered=False
    )
    chunks = answer.iter_encoded()
    received = next(iter(chunks))
    assert not images.remove(sha256)
    received += b"".join(chunks)
    answer.close()
    assert received == CONTENT
    assert images.remove(sha256)


def test_a_link_is_unguessable_and_expires(
    site: object, builder: FakeBuilder, settings: Settings
) -> None:
    service = settings.service.model_copy(update={"download_links": "images/files"})
    linked = settings.model_copy(update={"service": service})
    with running_app(linked, builder) as app:
        put(app.extensions["cic"].images, CONTENT)
        ada = Api(app)
        first, second = (
            ada("GET", f"/images/download/{NAME}").headers["Location"] for _ in range(2)
        )
        folder = settings.library.build.tmp_folder / "images"
        assert first != second
        assert first.startswith("/image_creation/images/files/") and first.endswith(f"/{NAME}")
        path = folder / first.removeprefix("/image_creation/images/files/")
        assert path.read_bytes() == CONTENT
        assert downloads.sweep_links(folder) == 0
        os.utime(path.parent, (time.time() - downloads.LINK_LIFE_S - 60,) * 2)
        assert downloads.sweep_links(folder) == 1
        assert not path.exists()


def test_a_public_file_of_an_earlier_spelling_follows_its_image(
    site: Site, builder: FakeBuilder
) -> None:
    settings = site.with_environ(CIC_PUBLIC_DOWNLOADS="true").settings
    folder = settings.library.build.tmp_folder
    earlier = "demo_hello_x86_64_openmpi-4_nogpu_v_latest.sif"
    put(ImageStore(folder / "store"), CONTENT, earlier)
    with running_app(settings, builder) as app:
        machine = REQUEST["machine"] | {"mpi": "openmpi@4"}
        name = Api(app).wait(Api(app).submit(machine=machine))["filename"]
        assert name == earlier.replace("-4", "_4")
        assert (folder / "images" / name).samefile(folder / "images" / earlier)
        assert (folder / "images" / name).read_bytes() != CONTENT


def test_public_files_follow_the_store(tmp_path: Path) -> None:
    images, folder = ImageStore(tmp_path / "store"), tmp_path / "images"
    first = put(images, b"one")
    put(images, b"two", name="b.sif", identity="b" * 64)
    downloads.offer_all_publicly(images, folder, is_wanted=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        NAME: b"one",
        "b.sif": b"two",
    }
    put(images, b"newer", identity="c" * 64)
    images.remove(images.by_name("b.sif").sha256)  # type: ignore[union-attr, arg-type]
    downloads.offer_all_publicly(images, folder, is_wanted=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {NAME: b"newer"}
    assert images.by_sha256(first)
    downloads.offer_all_publicly(images, folder, is_wanted=False)
    assert list(folder.iterdir()) == []


def test_downloads_are_noted(ada: Api, app: Flask, sha256: str) -> None:
    engine: Engine = app.extensions["cic"].engine
    ada("GET", f"/images/download/{NAME}").close()
    ada("GET", f"/images/download/{NAME}", headers={"Range": "bytes=5-"}).close()
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("SELECT \"user\", subject FROM audit_events WHERE action = 'download'")
        ).all()
    assert [tuple(row) for row in rows] == [("ada", f"{NAME} {sha256}")] * 2, (
        "who asks for parts gets the whole, too"
    )
