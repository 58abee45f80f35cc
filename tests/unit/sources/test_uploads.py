"""Folders that strangers send as tar archives: what is kept, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.errors import NotFound
from image_builder.sources.git.trees import BadTree, Limits
from image_builder.sources.local_step import local_step, read_folder
from image_builder.sources.own_description import parse_any_request
from image_builder.sources.uploads import Upload, keep_upload, uploaded_step
from tests.support.site import MACHINE, git

LIMITS = Limits(max_files=100, max_bytes=1024**2)
DESCRIPTION = "apt:\n  - bc\n"
LONG = "deep/" * 30 + "n" * 120


def keep(archive: bytes, root: Path, limits: Limits = LIMITS) -> Upload:
    return keep_upload(io.BytesIO(archive), root, limits)


def step(folder: Path) -> Path:
    """A step with everything that a step may have."""
    folder.mkdir()
    (folder / "eflows4hpc.yaml").write_text(DESCRIPTION)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "data").mkdir()
    (folder / "data" / "ümlaut  name").write_bytes(os.urandom(5000))
    (folder / "data" / "empty").write_bytes(b"")
    (folder / "link").symlink_to("data/empty")
    (folder / "hollow").mkdir()
    (folder / LONG).parent.mkdir(parents=True)
    (folder / LONG).write_text("deep")
    return folder


def tar(folder: Path, *options: str, what: str = ".") -> bytes:
    command = ["tar", "--create", *options, "--directory", str(folder), what]
    return subprocess.run(command, check=True, capture_output=True).stdout


Add = Callable[[tarfile.TarFile], None]


def archive(*members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
        for info in members:
            made.addfile(info, io.BytesIO(b"x" * info.size))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize("form", ["gnu", "posix", "ustar", "oldgnu"])
def test_a_folder_has_the_tree_that_git_gives_it(tmp_path: Path, form: str) -> None:
    folder = step(tmp_path / "step")
    if form == "ustar":  # which has no room for long names
        subprocess.run(["rm", "-r", str(folder / "deep")], check=True)
    git(folder, "init", "-q")
    git(folder, "add", "--all")
    git(folder, "commit", "-qm", "step")
    kept = keep(tar(folder, f"--format={form}"), tmp_path / "kept")
    assert kept.tree == git(folder, "rev-parse", "HEAD^{tree}")
    assert local_step(tmp_path / "kept" / kept.tree, workflow="w", step_id="s").tree == kept.tree
    assert keep(gzip.compress(tar(folder)), tmp_path / "kept") == kept
    assert keep(tar(tmp_path, "--exclude=kept", what="step"), tmp_path / "kept") == kept
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [kept.tree]
    assert (tmp_path / "kept" / kept.tree / "run.sh").stat().st_mode & 0o777 == 0o755


def test_what_git_archives_is_taken(tmp_path: Path) -> None:
    folder = step(tmp_path / "step")
    git(folder, "init", "-q")
    git(folder, "add", "--all")
    git(folder, "commit", "-qm", "step")
    git(folder, "archive", "--output", str(tmp_path / "step.tar"), "HEAD")
    kept = keep((tmp_path / "step.tar").read_bytes(), tmp_path / "kept")
    assert kept.tree == git(folder, "rev-parse", "HEAD^{tree}")


def test_a_request_names_a_kept_folder(tmp_path: Path) -> None:
    kept = keep(tar(step(tmp_path / "step")), tmp_path / "kept")
    request = parse_any_request({"machine": MACHINE, "folder": kept.tree, "name": "flows/solver"})
    found = uploaded_step(request, tmp_path / "kept", LIMITS)
    assert (found.workflow, found.step_id, found.tree) == ("flows", "solver", kept.tree)
    assert found.path is not None
    assert read_folder(found.path).description == DESCRIPTION
    (tmp_path / "kept" / kept.tree / "run.sh").write_text("changed")
    with pytest.raises(NotFound):
        uploaded_step(request, tmp_path / "kept", LIMITS)
    with pytest.raises(NotFound):
        uploaded_step(request, tmp_path / "elsewhere", LIMITS)


def sparse() -> bytes:
    """A sparse file as GNU tar writes it."""
    made = bytearray(archive(member("a", size=10)))
    made[156:157] = b"S"
    return signed(made)


def signed(made: bytearray) -> bytes:
    """The archive with the first header's checksum made right."""
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made[:512])
    return bytes(made)


def huge() -> bytes:
    """A file of which the header says 8 GiB, in the binary form."""
    made = bytearray(archive(member("a", size=10)))
    made[124:136] = b"\x80" + (8 * 1024**3).to_bytes(11, "big")
    return signed(made)


def negative() -> bytes:
    made = bytearray(archive(member("a", size=10)))
    made[124:136] = b"-0000000100\0"
    return signed(made)


def pax(records: bytes) -> bytes:
    """An extended header with these records, and a file."""
    header = bytearray(archive(member("pax", size=len(records)))[:512])
    header[156:157] = b"x"
    return (
        signed(header) + records.ljust(-(-len(records) // 512) * 512, b"\0") + archive(member("a"))
    )


def file_and_folder() -> bytes:
    return archive(member("a"), member("a/b"))


BOMB = gzip.compress(b"\0" * 512 + b"\0" * 50 * 1024**2, mtime=0)


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"", "is no tar archive"),
        (b"PK\x03\x04" + b"x" * 2000, "is no tar archive"),
        (b"x" * 511, "is no tar archive"),
        (b"\x1f\x8bnothing", "is a damaged gzip file"),
        (gzip.compress(archive(member("a", size=9)), mtime=0)[:-20], "is a damaged gzip file"),
        (archive(member("a", size=2000))[:1500], "ends before its end"),
        (archive(member("a"), member("b"))[:512], "ends before its end"),
        (archive(member("a"))[:512] + b"?" * 512, "is damaged"),
        (archive(member("/etc/passwd")), "has a name that is not allowed"),
        (archive(member("../a")), "has a name that is not allowed"),
        (archive(member("a/../../b")), "has a name that is not allowed"),
        (archive(member("a//b")), "has a name that is not allowed"),
        (archive(member("a\nb")), "has a name that is not allowed"),
        (archive(member("../d", tarfile.DIRTYPE)), "has a name that is not allowed"),
        (archive(member("a/.GIT/config")), "has a name that git keeps for itself"),
        (archive(member("n" * 300)), "has a name that is too long"),
        (archive(member("n" * 20_000)), "has names that are too long"),
        (archive(member("d/" * 120 + "a")), "is more than 100 folders deep"),
        (archive(member("a", tarfile.SYMTYPE, linkname="/etc")), "leaves the folder"),
        (archive(member("a", tarfile.SYMTYPE, linkname="../x")), "leaves the folder"),
        (archive(member("a", tarfile.SYMTYPE, linkname="")), "is a symbolic link to nowhere"),
        (
            archive(
                member("a", tarfile.SYMTYPE, linkname="b"),
                member("b", tarfile.SYMTYPE, linkname="a"),
            ),
            "leads in a circle",
        ),
        (archive(member("d", tarfile.SYMTYPE, linkname="."), member("d/f")), "a file and a folder"),
        (archive(member("a"), member("b", tarfile.LNKTYPE, linkname="a")), "is a hard link"),
        (archive(member("a", tarfile.CHRTYPE)), "is neither a file, a folder nor a link"),
        (archive(member("a", tarfile.BLKTYPE)), "is neither a file, a folder nor a link"),
        (archive(member("a", tarfile.FIFOTYPE)), "is neither a file, a folder nor a link"),
        (archive(member("a"), member("a")), "is there twice"),
        (archive(member("a"), member("./a")), "is there twice"),
        (file_and_folder(), "is a file and a folder at once"),
        (sparse(), "is neither a file, a folder nor a link"),
        (huge(), "is damaged, or has a file of 8 GiB and more"),
        (negative(), "is damaged"),
        (pax(b"20 GNU.sparse.map=0\n"), "has a sparse file"),
        (pax(b"12 size=100\n"), "has a sparse file, or one of 8 GiB"),
        (pax(b"99 path=a\n"), "is damaged"),
        (pax(b"0 path=a\n"), "is damaged"),
        (pax(b"9" * 5000), "is damaged"),
        (archive(*(member(f"f{number}") for number in range(101))), "holds more than 100 files"),
        (archive(*(member(f"d{n}", tarfile.DIRTYPE) for n in range(101))), "more than 100 files"),
        (archive(member("a", size=1024**2 + 1)), "holds more than 1 MiB"),
        (BOMB, "MiB unpacked"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, sent: bytes, problem: str) -> None:
    with pytest.raises(BadTree) as caught:
        keep(sent, tmp_path / "kept")
    assert problem in str(caught.value)
    assert list((tmp_path / "kept").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_link_into_a_folder_is_not_written_through(tmp_path: Path) -> None:
    """A link and a file below it are refused, wherever in the archive they are."""
    outside = tmp_path / "outside"
    outside.mkdir()
    sent = archive(member("d/f"), member("d", tarfile.SYMTYPE, linkname="../outside"))
    with pytest.raises(BadTree):
        keep(sent, tmp_path / "kept")
    assert list(outside.iterdir()) == []


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_read(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Whatever a byte is changed to, the answer is a folder or a refusal."""
    made = bytearray(
        archive(member("eflows4hpc.yaml", size=9), member("n" * 120, size=600), member("d/x"))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    root = tmp_path_factory.mktemp("kept")
    try:
        kept = keep(bytes(made), root)
    except BadTree:
        assert list(root.iterdir()) == []
    else:
        assert local_step(root / kept.tree, workflow="w", step_id="s").tree == kept.tree
