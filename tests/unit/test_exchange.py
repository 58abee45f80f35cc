"""Built packages between a site and a builder: a folder stands for the cache mount, and copies for build steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from image_builder.errors import BuildFailed, ErrorCode
from image_builder.exchange import Exchange
from image_builder.process import CancelToken, run
from image_builder.recipe import BRING_STAGE, FETCH_STAGE, PACKAGES_CONTEXT
from image_builder.workspace import made_workspace
from tests.system.recording import Heard
from tests.unit.test_packages import Folder, digest_of, lock_of

LOCK = lock_of({"glibc": [], "zlib": ["glibc"], "png": ["zlib"]})


class FakeStages:
    """In place of buildx: `mount` is the builder's cache mount."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.ran: list[str] = []

    def __call__(self, stage: str, output: str, *, nonce: str, contexts: Mapping[str, Path] | None = None) -> None:
        assert nonce
        self.ran.append(stage)
        if stage == BRING_STAGE:
            assert contexts is not None
            shutil.copytree(contexts[PACKAGES_CONTEXT], self.mount / "shared", dirs_exist_ok=True)
        else:
            assert stage == FETCH_STAGE
            shutil.copytree(self.mount / "shared", output.partition("dest=")[2])


class FailingStages(FakeStages):
    def __call__(self, stage: str, output: str, *, nonce: str, contexts: Mapping[str, Path] | None = None) -> None:
        raise BuildFailed("no builder", code=ErrorCode.BUILD_STEP_FAILED, step=stage)


def exchanged(root: Path, stages: FakeStages, way: str) -> Heard:
    heard = Heard()
    with made_workspace(root / "workspace") as workspace:
        exchange = Exchange(root / "site", json.loads(LOCK), workspace=workspace, run_stage=stages, runner=run,
                            observer=heard, cancel=CancelToken(), timeout_s=60)
        exchange.bring() if way == "bring" else exchange.fetch()
    return heard


@pytest.mark.parametrize("layout", ["build_cache", "v3"])
def test_what_one_host_made_another_has(tmp_path: Path, layout: str) -> None:
    made = Folder(tmp_path / "one", layout)
    made.root.mkdir()
    made.run(LOCK)
    exchanged(tmp_path, FakeStages(made.cache), "fetch")
    assert (tmp_path / "site" / "shared").is_dir()

    other = Folder(tmp_path / "other", layout)
    other.root.mkdir()
    exchanged(tmp_path, FakeStages(other.cache), "bring")
    assert any(digest_of("png") in path.name for path in other.published())
    assert other.run(LOCK) == ["took zlib", "took png"]


def test_without_anything_to_bring_no_step_runs(tmp_path: Path) -> None:
    stages = FakeStages(tmp_path / "mount")
    exchanged(tmp_path, stages, "bring")
    assert stages.ran == []


def test_what_fails_is_told_and_no_more(tmp_path: Path) -> None:
    heard = exchanged(tmp_path, FailingStages(tmp_path / "mount"), "fetch")
    assert "could be put into the folder of spack_cache: no builder" in heard.lines[-1]
