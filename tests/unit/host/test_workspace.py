"""One build's folders."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from image_builder.errors import ErrorCode, NoSpace
from image_builder.host.workspace import Workspace, made_workspace, require_free_space


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "builds" / "one"


def test_it_is_made_for_us_alone_and_removed(root: Path) -> None:
    with made_workspace(root) as space:
        for folder in (space.root, space.context, space.secrets, space.scratch):
            assert mode(folder) == 0o700
        (space.scratch / "deep" / "er").mkdir(parents=True)
        (space.scratch / "deep" / "er" / "file").touch()
    assert not root.exists()
    assert root.parent.is_dir()


def test_it_is_removed_after_an_error(root: Path) -> None:
    with pytest.raises(KeyError), made_workspace(root):
        raise KeyError
    assert not root.exists()


def test_what_an_earlier_attempt_left_is_gone(root: Path) -> None:
    (root / "context").mkdir(parents=True)
    (root / "context" / "old").touch()
    with made_workspace(root) as space:
        assert list(space.context.iterdir()) == []


def test_a_link_inside_leads_clean_up_nowhere(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    with made_workspace(root) as space:
        (space.context / "link").symlink_to(outside)
    assert (outside / "kept").exists()


def test_files_of_the_context(root: Path) -> None:
    with made_workspace(root) as space:
        space.write_context(
            {"Dockerfile": "FROM x\n", "cic/run.sh": "#!/bin/sh\n", "cic/text": "ä\n"}
        )
        assert (space.context / "cic/text").read_bytes() == "ä\n".encode()
        assert mode(space.context / "cic/run.sh") == 0o755
        assert mode(space.context / "Dockerfile") == 0o644


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "link/out", "."])
def test_nothing_is_written_outside_the_context(root: Path, name: str) -> None:
    with made_workspace(root) as space:
        (space.context / "link").symlink_to(space.scratch)
        with pytest.raises(ValueError, match="outside the build context"):
            space.write_context({name: "x"})
        assert not list(space.scratch.iterdir())
        assert not (space.root / "out").exists()


def test_a_link_is_not_written_through(root: Path) -> None:
    with made_workspace(root) as space:
        victim = space.secrets / "victim"
        victim.write_text("safe")
        (space.context / "Dockerfile").symlink_to(victim)
        with pytest.raises(ValueError, match="outside the build context"):
            space.write_context({"Dockerfile": "x"})
        assert victim.read_text() == "safe"


def test_a_secret_is_ours_alone(root: Path) -> None:
    before = os.umask(0)
    try:
        with made_workspace(root) as space:
            path = space.write_secret("token", b"canary")
            assert (mode(path), path.read_bytes()) == (0o600, b"canary")
            assert path.parent == space.secrets
            assert space.context not in path.parents
    finally:
        os.umask(before)


def test_too_little_room_is_told_before_anything_begins(root: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(NoSpace, match=r"GB free, and 1000000000\.0 GB are needed") as caught,
        made_workspace(root, min_free_bytes=10**18),
    ):
        raise AssertionError("not reached")
    assert (caught.value.code, root.exists()) == (ErrorCode.NO_SPACE, False)
    assert str(root) in caught.value.message
    require_free_space(tmp_path, 1)


def test_a_workspace_itself_makes_nothing(root: Path) -> None:
    Workspace(root)
    assert not root.exists()
