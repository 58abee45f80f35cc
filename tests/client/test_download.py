"""Images are fetched whole or not at all: what breaks is completed, and what is another is removed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cic_client import (
    Client,
    ClientError,
    UnexpectedAnswer,
    Unreachable,
    WrongChecksum,
    download,
)

from tests.client.conftest import Cic, Pauses
from tests.client.scripted import Script, Scripted, send

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def image_of(**changes: Any) -> bytes:
    image = {
        "filename": "a.sif", "image_id": "a", "identity": "i", "platform": "linux/amd64", "created_at": "",
        "sha256": SHA256, "size_bytes": len(CONTENT),
    }  # fmt: skip
    return json.dumps(image | changes).encode()


def serving(content: bytes, *, cut_after: int | None = None, **changes: Any) -> Script:
    """A script of a service that has one image, and may cut the first download."""
    downloads: list[int] = []

    def script(handler: BaseHTTPRequestHandler, _: int) -> None:
        if "/images/download/" not in handler.path:
            send(handler, 200, image_of(**changes))
            return
        downloads.append(1)
        asked = handler.headers.get("Range", "bytes=0-")
        begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = content[begin:]
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body[: cut_after if len(downloads) == 1 else None])

    return script


def test_a_download_that_breaks_goes_on(scripted: Scripted, pauses: Pauses, tmp_path: Path) -> None:
    service = scripted(serving(CONTENT, cut_after=200_000))
    with Client(service.address, token="t", pause=pauses) as client:
        path = client.download("a.sif", tmp_path)
    assert path.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [path]
    (_, _, first), (_, _, second) = service.requests[1:]
    assert "Range" not in first
    assert (second["Range"], second["If-Range"]) == ("bytes=196608-", f'"{SHA256}"')


def test_what_a_download_left_is_completed_by_the_next(
    scripted: Scripted, pauses: Pauses, tmp_path: Path
) -> None:
    broken = scripted(serving(CONTENT[:100_000]))
    with (
        Client(broken.address, token="t", pause=pauses) as client,
        pytest.raises(Unreachable, match="resumes it"),
    ):
        client.download("a.sif", tmp_path)
    (part,) = tmp_path.iterdir()
    assert (part.name, part.stat().st_size) == (f"a.sif.{SHA256[:8]}.part", 100_000)
    service = scripted(serving(CONTENT))
    with Client(service.address, token="t") as client:
        assert client.download("a.sif", tmp_path).read_bytes() == CONTENT
    assert service.requests[-1][2]["Range"] == "bytes=100000-"


def test_what_is_here_already_is_not_fetched(scripted: Scripted, tmp_path: Path) -> None:
    (tmp_path / "a.sif").write_bytes(CONTENT)
    service = scripted(serving(CONTENT))
    with Client(service.address, token="t") as client:
        assert client.download("a.sif", tmp_path).read_bytes() == CONTENT
    assert [path for _, path, _ in service.requests] == ["/image_creation/image/a.sif"]


def test_another_file_than_the_one_that_was_named_does_not_stay(
    scripted: Scripted, tmp_path: Path
) -> None:
    service = scripted(serving(CONTENT[::-1] + b"and more"))
    with Client(service.address, token="t") as client:
        with pytest.raises(WrongChecksum, match="removed"):
            client.download("a.sif", tmp_path)
        with pytest.raises(UnexpectedAnswer, match="another image"):
            client.download("a.sif", tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("filename", [".bashrc", "-x", "a b", "a\n", "x" * 300, "a\x1b[2J"])
def test_a_server_does_not_choose_a_strange_file(
    scripted: Scripted, tmp_path: Path, filename: str
) -> None:
    service = scripted(serving(CONTENT, filename=filename))
    with Client(service.address, token="t") as client, pytest.raises(UnexpectedAnswer):
        client.download(filename, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size_bytes", [10**15])
def test_what_does_not_fit_is_not_begun(
    scripted: Scripted, tmp_path: Path, size_bytes: int
) -> None:
    service = scripted(serving(CONTENT, size_bytes=size_bytes))
    with (
        Client(service.address, token="t") as client,
        pytest.raises(ClientError, match="has room for"),
    ):
        client.download("a.sif", tmp_path)
    assert [path for _, path, _ in service.requests] == ["/image_creation/image/a.sif"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_is_told_and_the_rest_comes_later(
    scripted: Scripted, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = scripted(serving(CONTENT))
    with Client(service.address, token="t") as client:
        with pytest.raises(ClientError, match="has room for"):
            client.download("a.sif", small_disk)
        # Somebody else fills it meanwhile.
        monkeypatch.setattr(download, "_require_room", lambda part, missing: None)
        with pytest.raises(ClientError, match=r"No space is left in .*resumes"):
            client.download("a.sif", small_disk)
        (part,) = small_disk.iterdir()
        assert 0 < part.stat().st_size < len(CONTENT)
        (tmp_path / part.name).write_bytes(part.read_bytes())
        assert client.download("a.sif", tmp_path).read_bytes() == CONTENT
    assert "Range" in service.requests[-1][2]


def test_a_file_may_have_another_name_and_replaces_what_had_it(
    scripted: Scripted, tmp_path: Path
) -> None:
    (tmp_path / "mine.sif").write_bytes(b"of before")
    service = scripted(serving(CONTENT))
    with Client(service.address, token="t") as client:
        path = client.download("a.sif", tmp_path, name="mine.sif")
    assert path == tmp_path / "mine.sif" and path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_goes_on_where_the_connection_broke(scripted: Scripted, pauses: Pauses) -> None:
    service = scripted(serving(CONTENT, cut_after=200_000))
    copied = io.BytesIO()
    with Client(service.address, token="t", pause=pauses) as client:
        client.copy_to("a.sif", copied.write)
    assert copied.getvalue() == CONTENT
    assert service.requests[-1][2]["Range"] == "bytes=196608-"


def test_a_copy_is_not_begun_twice(scripted: Scripted, pauses: Pauses) -> None:
    """A service that sends all of it anew, though asked for the rest, would double what is there."""
    whole = serving(CONTENT, cut_after=200_000)

    def script(handler: BaseHTTPRequestHandler, number: int) -> None:
        del handler.headers["Range"]
        whole(handler, number)

    copied = io.BytesIO()
    with (
        Client(scripted(script).address, token="t", pause=pauses) as client,
        pytest.raises(UnexpectedAnswer, match="does not go on"),
    ):
        client.copy_to("a.sif", copied.write)
    assert CONTENT.startswith(copied.getvalue())


@pytest.mark.parametrize(("content", "status"), [(CONTENT, 0), (CONTENT[::-1], 5)])
def test_an_image_goes_through_a_pipe(
    scripted: Scripted, cic: Cic, content: bytes, status: int
) -> None:
    service = scripted(serving(content))
    done = subprocess.run(
        [sys.executable, "-m", "cic_client", "pull", "a.sif", "--output", "-"],
        cwd=cic.home,
        env={**cic.environ, "CIC_URL": service.address, "CIC_TOKEN": "t"},
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (status, content)
    assert b"do not use it" in done.stderr or status == 0
    assert list(cic.home.glob("*.sif*")) == []
