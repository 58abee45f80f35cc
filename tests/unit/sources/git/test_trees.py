"""Folders as git sees them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from image_builder.errors import Cancelled, NoSpace
from image_builder.host.cancellation import CancelToken
from image_builder.sources.git import trees
from image_builder.sources.git.trees import BadTree, Changed, Entry, Limits
from tests.support.git_repository import GitRepository

PLENTY = Limits()


def entry(path: str, *, mode: int = trees.FILE, content: bytes = b"x", target: str = "") -> Entry:
    data = target.encode() if mode == trees.LINK else content
    return Entry(
        path=path, mode=mode, digest=trees.blob_digest(data), size=len(data), target=target
    )


def link(path: str, target: str) -> Entry:
    return entry(path, mode=trees.LINK, target=target)


def entries_of(folder: Path) -> list[Entry]:
    return trees.read_entries(folder, trees.walk(folder, limits=PLENTY))


def read_x(_: Entry) -> Iterable[bytes]:
    return [b"x"]


def test_the_digest_is_the_one_that_git_gives(tmp_path: Path) -> None:
    repository = GitRepository(tmp_path / "repository")
    for path in (
        "a/file",
        "a-b",
        "a.b",
        "a0",
        "ab/deep/er/file",
        "z",
        "name with space",
        "Ünïcode/ß",
        "empty",
    ):
        repository.write(path, "" if path == "empty" else path)
    repository.write("run.sh", "#!/bin/sh\n", executable=True)
    repository.write("large", "0123456789" * 300_000)
    (repository.folder / os.fsdecode(b"not-utf8-\xff")).write_text("x")
    os.symlink("a/file", repository.folder / "a link")
    os.symlink("nowhere", repository.folder / "a/dangling")
    (repository.folder / "empty folder").mkdir()
    repository.commit()
    assert trees.tree_digest(entries_of(repository.folder)) == repository.git(
        "rev-parse", "HEAD^{tree}"
    )


def test_nothing_has_the_digest_of_the_empty_tree(tmp_path: Path) -> None:
    assert trees.tree_digest([]) == GitRepository(tmp_path / "r").git(
        "hash-object", "-t", "tree", "/dev/null"
    )


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/tool").write_text("#!/bin/sh\n")
    (source / "deep/er/tool").chmod(0o700)
    (source / "plain").write_bytes(bytes(range(256)) * 9000)
    (source / "plain").chmod(0o600)
    os.symlink("deep/er/tool", source / "link")
    before = os.umask(0o077)
    try:
        trees.write(
            entries_of(source), tmp_path / "copy", lambda one: trees.read_file(source / one.path)
        )
    finally:
        os.umask(before)
    assert entries_of(tmp_path / "copy") == entries_of(source)
    modes = {
        path: (tmp_path / "copy" / path).lstat().st_mode & 0o777
        for path in ("plain", "deep/er/tool", "deep", ".")
    }
    assert modes == {"plain": 0o644, "deep/er/tool": 0o755, "deep": 0o755, ".": 0o755}
    times = {
        path.lstat().st_mtime_ns for path in ((tmp_path / "copy"), *(tmp_path / "copy").rglob("*"))
    }
    assert {time_ns // 10**9 for time_ns in times} == {trees.MTIME_S}


def test_another_content_of_the_same_size_has_another_time(tmp_path: Path) -> None:
    times = set()
    for name, content in (("one", b"a"), ("two", b"b"), ("three", b"a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(content)
        source, copy = tmp_path / name, tmp_path / f"{name}-copy"
        trees.write(
            entries_of(source), copy, lambda one, source=source: trees.read_file(source / one.path)
        )
        times.add((content, (copy / "file").stat().st_mtime_ns))
    assert len(times) == 2


@pytest.mark.parametrize(
    "target",
    [
        "file",
        "./file",
        "../file",
        "../deep/../deep/../file",
        "down/../../file",
        "dangling/x",
        "self/../file",
        "a//b/./c",
    ],
)
def test_a_link_inside_the_folder_is_taken(target: str) -> None:
    trees.check([link("deep/link", target), link("deep/self", "."), entry("file")], PLENTY)


@pytest.mark.parametrize(
    ("links", "problem"),
    [
        ({"a": "/etc/passwd"}, "leaves the folder"),
        ({"a": ".."}, "leaves the folder"),
        ({"a": "../x"}, "leaves the folder"),
        ({"deep/a": "../../x"}, "leaves the folder"),
        ({"a": "b/../../x"}, "leaves the folder"),
        ({"deep/er/up": "../..", "a": "deep/er/up/../x"}, "leaves the folder"),
        ({"deep/up": "..", "deep/er/up": "../up", "a": "deep/er/up/../x"}, "leaves the folder"),
        ({"a": "b", "b": "c/d", "c": "../x"}, "leaves the folder"),
        ({"a": "b", "b": "a"}, "in a circle"),
        ({"a": "a"}, "in a circle"),
        ({"a": "a/a/a/a"}, "in a circle"),
        ({"a": ""}, "nowhere"),
        ({"a": "x\0y"}, "nowhere"),
        ({"a": "x" * 5000}, "nowhere"),
    ],
)
def test_a_link_out_of_the_folder_is_refused(links: dict[str, str], problem: str) -> None:
    with pytest.raises(BadTree, match=problem):
        trees.check([link(path, target) for path, target in links.items()], PLENTY)


def test_links_that_multiply_are_refused_quickly() -> None:
    bomb = {f"l{number}": f"l{number + 1}/l{number + 1}" for number in range(60)} | {"l60": "."}
    with pytest.raises(BadTree, match="in a circle"):
        trees.check([link(path, target) for path, target in bomb.items()], PLENTY)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "a//b",
        "a/",
        "../a",
        "a/../b",
        ".",
        "a/.",
        "..",
        ".git",
        "a/.git/config",
        ".GIT/x",
        ".git ",
        ".git.",
        "git~1",
        "new\nline",
        "tab\there",
        "nul\0",
        "\x7f",
        "n" * 256,
        "d/" * 100 + "f",
        "p/" * 90 + "n" * 200 + "/" + "n" * 2000,
    ],
)
def test_names_that_are_not_taken(path: str) -> None:
    with pytest.raises(BadTree):
        trees.check([entry(path)], PLENTY)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([entry("a"), entry("a")], "twice"),
        ([entry("a", mode=trees.LINK, target="b"), entry("a/file")], "a file and a folder"),
        ([entry("a"), entry("a/b/c/d")], "a file and a folder"),
        ([entry("a", mode=trees.SUBMODULE)], "submodule"),
        ([entry("a", mode=0o100666)], "unknown mode 100666"),
    ],
)
def test_things_that_are_no_files_are_refused(entries: list[Entry], problem: str) -> None:
    with pytest.raises(BadTree, match=problem):
        trees.check(entries, PLENTY)


def test_limits(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"f{number}").write_bytes(b"x" * 1000)
    assert len(trees.walk(tmp_path, limits=Limits(max_files=4, max_bytes=4000))) == 4
    for limits in (Limits(max_files=3), Limits(max_bytes=3999)):
        with pytest.raises(BadTree, match="holds more than"):
            trees.walk(tmp_path, limits=limits)
        with pytest.raises(BadTree, match="holds more than"):
            trees.check([entry(f"f{number}", content=b"x" * 1000) for number in range(4)], limits)


def test_folders_without_files_count_too(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"d{number}").mkdir()
    with pytest.raises(BadTree, match="more than 4 files"):
        trees.walk(tmp_path, limits=Limits(max_files=4))


def test_pipes_and_sockets_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadTree, match="neither a file, a folder nor a link"):
        trees.walk(tmp_path, limits=PLENTY)


def test_git_and_what_is_not_wanted_are_left_out(tmp_path: Path) -> None:
    for path in (".git/config", "sub/.git/config", "keep/a", "drop/b"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("x")
    found = trees.walk(tmp_path, limits=PLENTY, wanted=lambda path: not path.startswith("drop"))
    assert [file.path for file in found] == ["keep/a"]


def test_a_file_that_grows_while_it_is_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("short")
    found = trees.walk(tmp_path, limits=PLENTY)
    (tmp_path / "file").write_text("much longer")
    with pytest.raises(BadTree, match="changed while it was read"):
        trees.read_entries(tmp_path, found)


def test_a_file_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret").write_text("12345")
    (tmp_path / "folder/file").write_text("short")
    found = trees.walk(tmp_path / "folder", limits=PLENTY)
    (tmp_path / "folder/file").unlink()
    os.symlink("../secret", tmp_path / "folder/file")
    with pytest.raises(BadTree, match="cannot be read"):
        trees.read_entries(tmp_path / "folder", found)


def test_content_that_does_not_fit_its_digest_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Changed):
        trees.write([entry("a"), entry("b", content=b"other")], tmp_path / "copy", read_x)
    assert not (tmp_path / "copy").exists()


def test_a_cancelled_copy_leaves_nothing(tmp_path: Path) -> None:
    cancel = CancelToken()

    def read(_: Entry) -> Iterator[bytes]:
        yield b"x"
        cancel.cancel()

    with pytest.raises(Cancelled):
        trees.write([entry("a/b"), entry("c")], tmp_path / "copy", read, cancel)
    assert not (tmp_path / "copy").exists()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    def read(_: Entry) -> Iterator[bytes]:
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpace, match="is full"):
        trees.write([entry("a")], tmp_path / "copy", read)
    assert not (tmp_path / "copy").exists()


def test_nothing_is_written_into_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(FileExistsError):
        trees.write([entry("a")], tmp_path, read_x)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_messages_hold_no_control_characters() -> None:
    assert trees.printable("a\x1b[31m\n" + os.fsdecode(b"\xff") + "é") == "a?[31m??é"
    assert len(trees.printable("x" * 10_000)) == 200
