"""A SIF that is begun while an image's files are read; in place of tar2sqfs, `tee` keeps the tar."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from image_builder.errors import Cancelled
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command
from image_builder.settings import BuildSettings
from image_builder.sif import begun as begun_sif
from image_builder.sif import tar_filter
from image_builder.sif.begun import BegunSif, CopyingWindow, begun
from image_builder.sif.flow import ADDITIONS, Flow

LARGE = 5 * 1024**2


def archive(files: Mapping[str, bytes]) -> bytes:
    """A tar of files, with the folders above them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as target:
        for folder in sorted({name.rpartition("/")[0] for name in files} - {""}):
            member = tarfile.TarInfo(folder)
            member.type = tarfile.DIRTYPE
            target.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


IMAGE = archive({"etc/passwd": b"root", "opt/large": os.urandom(LARGE), "opt/small": b"x"})


def flow(folder: Path, *sink: str, cancel: CancelToken | None = None) -> Flow:
    target = folder / "begun" / "image"
    return Flow(
        target=target,
        sink=Command(name="sink", argv=sink or ("tee", str(target))),
        folder=folder / "begun",
        has_additions=True,
        time_s=0,
        settings=BuildSettings(tmp_folder=folder, builder_home=Path("/opt/cic"), base_image="base"),
        cancel=cancel,
    )


def read_through(content: bytes, copy: BegunSif) -> list[bytes]:
    """The names in an archive that is read to its end, and passed on."""
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as file:
            file.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    names = []
    with open(reading, "rb", buffering=0):
        window = CopyingWindow(reading, copy)
        try:
            while (member := tar_filter.next_member(window)) is not None:
                copy.see(member, window)
                names.append(member.name)
                window.drop(member.extent + member.body_bytes)
        finally:
            window.drain()
            writer.join()
    copy.end()
    return names


def test_what_is_read_is_made_and_waits_for_the_additions(tmp_path: Path) -> None:
    with begun(flow(tmp_path)) as sif:
        assert sif is not None
        assert read_through(IMAGE, sif) == [
            b"etc",
            b"opt",
            b"etc/passwd",
            b"opt/large",
            b"opt/small",
        ]
        assert sif.is_usable
        (tmp_path / "begun" / "new").write_bytes(archive({"etc/hosts": b"added"}))
        (tmp_path / "begun" / "new").rename(tmp_path / "begun" / ADDITIONS)
        report = sif.running.wait(None)
        assert (report.entries, report.added) == (6, 1)
        with (
            tarfile.open(sif.running.flow.target) as made,
            tarfile.open(fileobj=io.BytesIO(IMAGE)) as image,
        ):
            for name in ("etc/passwd", "opt/large", "opt/small"):
                here, there = made.extractfile(name), image.extractfile(name)
                assert here is not None and there is not None and here.read() == there.read()
            added = made.extractfile("etc/hosts")
            assert added is not None and added.read() == b"added"
    assert not (tmp_path / "begun").exists()


def test_a_process_that_fails_costs_nothing_but_what_was_begun(tmp_path: Path) -> None:
    with begun(flow(tmp_path, "false")) as sif:
        assert sif is not None
        assert len(read_through(IMAGE, sif)) == 5
        assert not sif.is_usable


def test_an_archive_that_is_refused_is_read_to_its_end(tmp_path: Path) -> None:
    """The filter refuses a name that is there twice; who reads the files says what it thinks of it."""
    with begun(flow(tmp_path)) as sif:
        assert sif is not None
        twice = 2 * archive({"a": b"1"})[: 2 * tar_filter.BLOCK] + IMAGE
        assert len(read_through(twice, sif)) == 7
        _ended(sif)
        assert not sif.is_usable


def test_what_takes_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begun_sif, "PATIENCE_S", 0.1)
    monkeypatch.setattr(begun_sif, "POLL_S", 0.05)
    with begun(flow(tmp_path, "sleep", "60")) as sif:
        assert sif is not None
        assert len(read_through(IMAGE, sif)) == 5
        assert not sif.is_usable


def test_a_cancelled_build_does_not_wait_for_what_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begun_sif, "POLL_S", 0.05)
    cancel = CancelToken()
    with begun(flow(tmp_path, "sleep", "60", cancel=cancel)) as sif:
        assert sif is not None
        cancel.cancel()
        with pytest.raises(Cancelled):
            sif.take(IMAGE)  # more than the pipes hold


def test_an_image_with_files_where_singularity_has_its_own_is_not_begun(tmp_path: Path) -> None:
    content = archive({".singularity.d/labels.json": b"{}", "opt/large": os.urandom(LARGE)})
    with begun(flow(tmp_path)) as sif:
        assert sif is not None
        assert len(read_through(content, sif)) == 4
        assert not sif.is_usable


def test_without_its_programs_nothing_is_begun(tmp_path: Path) -> None:
    with begun(flow(tmp_path, "no-such-program")) as sif:
        assert sif is None
    assert not (tmp_path / "begun").exists()


def _ended(sif: BegunSif) -> None:
    """Wait until a process of what was begun has failed."""
    for _ in range(1000):
        if sif.running.has_failed:
            return
        threading.Event().wait(0.01)
