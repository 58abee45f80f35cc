"""Built packages between a site's folder and a builder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from pydantic import SecretStr

from image_builder.build.buildcache.mirror import MirrorTool, PackageEntry
from image_builder.build.buildcache.signing import Signer
from image_builder.build.buildcache.stores import BuildCacheStore, FolderStore, described
from image_builder.errors import ServiceError
from image_builder.recipe.stages import FETCH_STAGE, LOOK_STAGE
from image_builder.settings import BuildSettings, RegistrySettings
from tests.support.exchange_contract import *  # noqa: F403  the tests of the contract
from tests.support.exchange_contract import CACHE, COMPILED, KEY, OTHER_KEY, TAKEN, Host, MakePlace
from tests.unit.build.buildcache.test_packages_program import digest_of

ENTRY = PackageEntry(
    node="n" * 32,
    spec_file="build_cache/a.spec.json",
    spec_sha256="1" * 64,
    files=(("build_cache/a.spack", "2" * 64),),
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


@pytest.fixture
def place(site: Path) -> MakePlace:
    def made(tool: MirrorTool, scratch: Path) -> BuildCacheStore:
        return FolderStore(site, tool)

    return made


def archive_of(site: Path, name: str) -> Path:
    return next(path for path in (site / "shared").rglob("*.spack") if digest_of(name) in path.name)


@pytest.mark.parametrize("keys", [None, KEY])
def test_a_broken_package_is_put_aside_and_built_again(
    tmp_path: Path, site: Path, place: MakePlace, keys: str | None
) -> None:
    Host(tmp_path / "one", place, keys=keys).build()
    archive = archive_of(site, "png")
    archive.write_bytes(archive.read_bytes()[:-1])
    assert Host(tmp_path / "other", place, keys=keys).build() == ["took zlib", "compiled png"]
    assert list((site / "aside").iterdir())
    assert Host(tmp_path / "third", place, keys=keys).build() == TAKEN


def test_what_was_changed_with_its_checksum_is_not_taken(
    tmp_path: Path, site: Path, place: MakePlace
) -> None:
    """Whoever can write there makes both agree. Without a key, nothing tells."""
    Host(tmp_path / "one", place, keys=KEY).build()
    spec_file = next(
        path for path in (site / "shared").rglob("*.spec.json") if digest_of("png") in path.name
    )
    evil = {**json.loads(spec_file.read_text("utf-8")), "poison": True}
    spec_file.unlink()
    spec_file.write_text(json.dumps(evil), "utf-8")
    signature = next(
        path for path in (site / "signatures").iterdir() if digest_of("png") in path.name
    )
    unsigned = tmp_path / "unsigned"
    shutil.copytree(site, unsigned)
    signature.rename(signature.with_name(f"{digest_of('png')}-{'0' * 64}"))
    assert Host(tmp_path / "other", place, keys=KEY).build() == ["took zlib", "compiled png"]
    assert Host(tmp_path / "trusting", lambda tool, _: FolderStore(unsigned, tool)).build() == TAKEN


def test_without_anything_to_bring_no_step_brings(tmp_path: Path, place: MakePlace) -> None:
    host = Host(tmp_path / "one", place)
    assert host.build() == COMPILED
    assert host.stages.names() == [LOOK_STAGE, FETCH_STAGE]


@pytest.mark.parametrize(
    "changed",
    [
        {"node": "m" * 32},
        {"spec_file": "build_cache/b.spec.json"},
        {"spec_sha256": "3" * 64},
        {"files": (("build_cache/a.spack", "4" * 64),)},
    ],
)
def test_a_signature_is_of_all_that_says_what_is_installed(changed: dict[str, object]) -> None:
    signer = Signer(SecretStr(f"{KEY}\n{OTHER_KEY}\n"), cache=CACHE)
    signature = signer.sign(ENTRY)
    assert signer.verify(ENTRY, signature)
    other = PackageEntry(**{**dataclasses.asdict(ENTRY), **changed})  # type: ignore[arg-type]
    assert not signer.verify(other, signature)
    assert not Signer(SecretStr(KEY), cache="another cache").verify(ENTRY, signature)
    assert not signer.verify(ENTRY, "ü")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("none", "share no packages"),
        ("mount", "builder.gc"),
        ("{tmp}/new/folder", "the service removes nothing"),
    ],
)
def test_readiness_says_where_packages_are_and_what_removes_them(
    tmp_path: Path, place: str, said: str
) -> None:
    build = BuildSettings(
        tmp_folder=tmp_path,
        builder_home=tmp_path,
        base_image="base:1",
        spack_cache=place.format(tmp=tmp_path),
    )
    assert said in described(build, RegistrySettings())


def test_a_place_that_nobody_can_write_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    build = BuildSettings(
        tmp_folder=tmp_path,
        builder_home=tmp_path,
        base_image="base:1",
        spack_cache=f"{tmp_path}/file/packages",
    )
    with pytest.raises(ServiceError, match="file/packages"):
        described(build, RegistrySettings())
