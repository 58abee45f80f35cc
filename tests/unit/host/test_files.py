"""New content that appears in one step."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from image_builder.host import files


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk, in order: names of what is synced, and renames."""
    noted: list[str] = []
    fsync, rename = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        noted.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def noting_rename(source: str | Path, target: str | Path) -> None:
        noted.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_rename)
    return noted


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, steps: list[str]) -> None:
    (tmp_path / "kept").mkdir()
    files.write_whole(tmp_path / "kept" / "note", "text")
    synced, *others = steps
    assert synced.startswith("sync .") and synced.endswith(".new")
    assert others == ["rename to note", "sync kept"]
    assert os.listdir(tmp_path / "kept") == ["note"]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, steps: list[str]) -> None:
    (tmp_path / "fresh").mkdir()
    files.move_into_place(tmp_path / "fresh", tmp_path / "kept")
    assert steps == ["sync fresh", "rename to kept", f"sync {tmp_path.name}"]


def test_what_may_be_lost_is_not_synced(tmp_path: Path, steps: list[str]) -> None:
    with files.replacing(tmp_path / "note", durable=False) as fresh:
        fresh.write_text("text")
    assert steps == ["rename to note"]


@pytest.mark.parametrize("content", ["new \N{SNOWMAN}", b"\xff\x00"])
def test_a_file_is_replaced(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "note"
    path.write_text("old")
    with path.open() as reader:
        files.write_whole(path, content)
        assert reader.read() == "old"
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_a_private_file_is_private_from_the_start(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "note", "secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "note").stat().st_mode) == 0o600


def test_after_an_error_all_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("old")

    def stopped_halfway() -> None:
        with files.replacing(tmp_path / "note") as fresh:
            fresh.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_halfway()
    assert (tmp_path / "note").read_text() == "old"
    assert os.listdir(tmp_path) == ["note"]


def test_a_folder_is_not_put_in_place_of_another(tmp_path: Path) -> None:
    for name in ("fresh", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with pytest.raises(OSError, match="not empty"):
        files.move_into_place(tmp_path / "fresh", tmp_path / "kept")
    assert (tmp_path / "fresh" / "file").exists()


@pytest.mark.parametrize(
    "kind", ["missing", "link", "dangling", "folder", "fifo", "large", "socket"]
)
def test_what_is_no_plain_small_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "told", tmp_path / "other"
    other.write_text("precious")
    if kind in ("link", "dangling"):
        path.symlink_to(other if kind == "link" else tmp_path / "nothing")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b"12345")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    with pytest.raises(files.UnreadableFile, match="told"):
        files.read_bounded(path, 4)


def test_a_plain_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "told").write_bytes(b"1234")
    assert files.read_bounded(tmp_path / "told", 4) == b"1234"
