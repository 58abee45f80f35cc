"""Test what every build cache does for builds.

A folder stands for a cache mount, and copies for build steps.

A module that takes these tests has a fixture `place`, which makes the place for one build.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr

from image_builder.build.buildcache.mirror import MirrorTool, PackageEntry
from image_builder.build.buildcache.signing import Signer
from image_builder.build.buildcache.stores import BuildCacheStore
from image_builder.build.buildcache.sync import BuildCacheSync
from image_builder.errors import BuildFailed, ErrorCode, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import run
from image_builder.host.workspace import Workspace, made_workspace
from image_builder.recipe.dockerfile import packages_program
from image_builder.recipe.stages import (
    BRING_STAGE,
    FETCH_STAGE,
    HELD_FILE,
    LOOK_STAGE,
    PACKAGES_CONTEXT,
    WANTED_FILE,
)
from tests.support.recording import Heard
from tests.unit.build.buildcache.test_packages_program import Folder, digest_of, lock_of

CACHE = "cic-spack-0123"
LOCK = lock_of({"glibc": [], "zlib": ["glibc"], "png": ["zlib"]})
KEY, OTHER_KEY = "a" * 64, "b" * 64
MakePlace = Callable[[MirrorTool, Path], BuildCacheStore]


class FakeStages:
    """In place of buildx: `mount` is the builder's cache mount, and what is asked for is copied."""

    def __init__(self, mount: Path, workspace: Workspace) -> None:
        self.mount, self._context = mount, workspace.context
        self.ran: list[tuple[str, list[str]]] = []

    def __call__(
        self, stage: str, output: str, *, nonce: str, contexts: Mapping[str, Path] | None = None
    ) -> None:
        assert nonce
        self.ran.append((stage, (self._context / WANTED_FILE).read_text("utf-8").split()))
        if stage == LOOK_STAGE:
            seen = Path(output.partition("dest=")[2])
            seen.mkdir()
            with packages_program() as program, (seen / HELD_FILE).open("w") as held:
                subprocess.run(
                    [
                        sys.executable,
                        program,
                        "list",
                        self.mount / "shared",
                        self._context / WANTED_FILE,
                    ],
                    check=True,
                    stdout=held,
                )
        elif stage == BRING_STAGE:
            assert contexts is not None
            shutil.copytree(contexts[PACKAGES_CONTEXT], self.mount / "shared", dirs_exist_ok=True)
        else:
            assert stage == FETCH_STAGE
            shutil.copytree(self.mount / "shared", output.partition("dest=")[2])

    def names(self) -> list[str]:
        return [stage for stage, _ in self.ran]


class FailingStages(FakeStages):
    def __call__(
        self, stage: str, output: str, *, nonce: str, contexts: Mapping[str, Path] | None = None
    ) -> None:
        raise BuildFailed("no builder", code=ErrorCode.BUILD_STEP_FAILED, step=stage)


class FakePlaceAway:
    """A fake place that is not reachable."""

    def available(self, wanted: Collection[str]) -> set[str]:
        raise Unavailable("the place is away")

    def pull(self, nodes: Collection[str]) -> Path:
        raise Unavailable("the place is away")

    def signature(self, entry: PackageEntry) -> str | None:
        raise Unavailable("the place is away")

    def publish(self, mirror: Path, entries: Mapping[PackageEntry, str | None]) -> None:
        raise Unavailable("the place is away")

    def quarantine(self, nodes: Collection[str]) -> None:
        raise Unavailable("the place is away")


class Host:
    """A build host: its cache mount, and the key that it signs with."""

    def __init__(
        self, root: Path, place: MakePlace, *, keys: str | None = None, layout: str = "build_cache"
    ) -> None:
        root.mkdir()
        self.root, self.place, self.layout = root, place, layout
        self.folder = Folder(root, layout)
        self.keys = keys

    def build(self, lock: str = LOCK, *, again: bool = False) -> list[str]:
        """Run a whole build: pull, install, push; return what was compiled or taken."""
        self.heard, cancel = Heard(), CancelToken()
        with made_workspace(self.root / "workspace") as workspace:
            self.stages = FakeStages(self.folder.cache, workspace)
            tool = MirrorTool(
                scratch=workspace.scratch,
                runner=run,
                cancel=cancel,
                timeout_s=60,
                on_line=self.heard.line,
            )
            exchange = BuildCacheSync(
                self.place(tool, workspace.scratch),
                json.loads(lock),
                tool=tool,
                workspace=workspace,
                run_stage=self.stages,
                observer=self.heard,
                signer=None if self.keys is None else Signer(SecretStr(self.keys), cache=CACHE),
            )
            exchange.pull(again=again)
            done = self.folder.run(lock)
            exchange.push()
        return [line for line in done if not line.startswith("began")]


TAKEN, COMPILED = ["took zlib", "took png"], ["compiled zlib", "compiled png"]


@pytest.mark.parametrize("keys", [None, KEY])
@pytest.mark.parametrize("layout", ["build_cache", "v3"])
def test_what_one_host_made_another_has(
    tmp_path: Path, place: MakePlace, layout: str, keys: str | None
) -> None:
    assert Host(tmp_path / "one", place, layout=layout, keys=keys).build() == COMPILED
    other = Host(tmp_path / "other", place, layout=layout, keys=keys)
    assert other.build() == TAKEN
    assert other.stages.names() == [LOOK_STAGE, BRING_STAGE]  # there was nothing to put


def test_only_what_a_place_has_not_is_put_there(tmp_path: Path, place: MakePlace) -> None:
    Host(tmp_path / "one", place).build()
    other = Host(tmp_path / "other", place)
    assert other.build(lock_of({"glibc": [], "zlib": ["glibc"], "jpeg": ["zlib"]})) == [
        "took zlib",
        "compiled jpeg",
    ]
    assert other.stages.ran[1:] == [
        (BRING_STAGE, [digest_of("zlib")]),
        (FETCH_STAGE, [digest_of("jpeg")]),
    ]


def test_what_the_mount_holds_is_not_brought(tmp_path: Path, place: MakePlace) -> None:
    Host(tmp_path / "one", place).build()
    other = Host(tmp_path / "other", place)
    assert other.build(lock_of({"glibc": [], "zlib": ["glibc"]})) == ["took zlib"]
    assert other.build() == TAKEN
    assert other.stages.ran[1:] == [(BRING_STAGE, [digest_of("png")])]
    assert other.build() == TAKEN
    assert other.stages.names() == [LOOK_STAGE]


def test_what_the_mount_held_before_there_was_a_place_is_put_there(
    tmp_path: Path, place: MakePlace
) -> None:
    host = Host(tmp_path / "one", place)
    host.folder.run(LOCK)
    assert host.build() == TAKEN
    assert host.stages.names() == [LOOK_STAGE, FETCH_STAGE]
    assert Host(tmp_path / "other", place).build() == TAKEN


def test_a_host_that_lost_its_mount_alone_compiles_nothing(
    tmp_path: Path, place: MakePlace
) -> None:
    """What Spack decided is remembered, so that the build is of a lock that was here before."""
    host = Host(tmp_path / "one", place)
    assert host.build() == COMPILED
    shutil.rmtree(host.folder.cache)
    host.folder.cache.mkdir()
    assert host.build(again=True) == TAKEN
    assert host.stages.names() == [LOOK_STAGE, BRING_STAGE]


def test_a_lock_whose_packages_are_here_asks_no_place(tmp_path: Path, place: MakePlace) -> None:
    host = Host(tmp_path / "one", place)
    assert host.build() == COMPILED
    host.place = lambda tool, scratch: FakePlaceAway()
    assert host.build(again=True) == TAKEN
    assert host.stages.names() == [LOOK_STAGE]
    assert not [line for line in host.heard.lines if line.startswith("Warning")]


@pytest.mark.parametrize("keys", [None, OTHER_KEY])
def test_what_is_signed_with_no_known_key_is_built_again_and_signed(
    tmp_path: Path, place: MakePlace, keys: str | None
) -> None:
    Host(tmp_path / "stranger", place, keys=keys).build()
    host = Host(tmp_path / "host", place, keys=KEY)
    assert host.build() == COMPILED
    assert any("broken or not signed" in line for line in host.heard.lines)
    assert Host(tmp_path / "next", place, keys=KEY).build() == TAKEN


def test_an_old_key_still_opens_what_it_signed(tmp_path: Path, place: MakePlace) -> None:
    Host(tmp_path / "before", place, keys=KEY).build()
    assert Host(tmp_path / "after", place, keys=f"{OTHER_KEY} {KEY}").build() == TAKEN


def test_no_mount_to_be_seen_is_told_and_no_more(
    tmp_path: Path, place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path / "host", place)
    monkeypatch.setattr("tests.support.exchange_contract.FakeStages", FailingStages)
    assert host.build() == COMPILED
    assert "could be put into the place of spack_cache: no builder" in host.heard.lines[-1]
