"""Built packages between a real image registry and builders."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from image_builder.build.buildcache.mirror import MirrorTool
from image_builder.build.buildcache.stores import BuildCacheStore, RegistryStore, described
from image_builder.errors import Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.recipe.stages import FETCH_STAGE
from image_builder.settings import BuildSettings, RegistrySettings
from image_builder.store.image_store import open_repository
from image_builder.store.oci_client import OciRepository
from tests.conftest import PROJECT
from tests.support.exchange_contract import *  # noqa: F403  the tests of the contract
from tests.support.exchange_contract import CACHE, COMPILED, KEY, TAKEN, Host, MakePlace
from tests.support.site import ImageRegistry, free_port, running_image_registry
from tests.unit.build.buildcache.test_packages_program import digest_of

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageRegistry]:
    with running_image_registry(tmp_path_factory.mktemp("registry") / "root") as running:
        yield running


def opened(host: str, name: str, *, user: str, password: str, folder: Path) -> OciRepository:
    build = BuildSettings(tmp_folder=folder, builder_home=PROJECT, base_image="base:1")
    logins = {host: {"user": user, "token": password}}
    return open_repository(
        f"oras://{host}/{name}", build, RegistrySettings.model_validate({"logins": logins})
    )


@pytest.fixture
def repository(registry: ImageRegistry, tmp_path: Path) -> OciRepository:
    name = "packages/" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    return opened(
        registry.host, name, user=registry.user, password=registry.password, folder=tmp_path
    )


def placed(repository: OciRepository) -> MakePlace:
    def made(tool: MirrorTool, scratch: Path) -> BuildCacheStore:
        return RegistryStore(repository, CACHE, scratch=scratch, cancel=CancelToken())

    return made


@pytest.fixture
def place(repository: OciRepository) -> MakePlace:
    return placed(repository)


def tag_of(name: str) -> str:
    return f"{CACHE}.{digest_of(name)}"


def test_nothing_is_published_over_what_came_there_meanwhile(
    tmp_path: Path, repository: OciRepository
) -> None:
    """Two hosts found nothing, and both built."""
    Host(tmp_path / "one", placed(repository)).build()
    before = repository.manifest(tag_of("png"))
    assert before is not None

    class Late(RegistryStore):
        def available(self, wanted: Collection[str]) -> set[str]:
            return set()

    late = Host(
        tmp_path / "late",
        lambda _, scratch: Late(repository, CACHE, scratch=scratch, cancel=CancelToken()),
    )
    assert late.build() == COMPILED
    assert late.stages.ran[1:] == [(FETCH_STAGE, sorted([digest_of("zlib"), digest_of("png")]))]
    assert repository.manifest(tag_of("png")) == before


@pytest.mark.parametrize("keys", [None, KEY])
def test_a_broken_package_is_put_aside_and_built_again(
    tmp_path: Path, place: MakePlace, repository: OciRepository, keys: str | None
) -> None:
    Host(tmp_path / "one", place, keys=keys).build()
    whole = repository.manifest(tag_of("png"))
    assert whole is not None
    repository.put_manifest(tag_of("png"), {**whole.content, "layers": whole.content["layers"][1:]})
    assert Host(tmp_path / "other", place, keys=keys).build() == ["took zlib", "compiled png"]
    assert [tag for tag in repository.tags() if tag.startswith(f"aside.{tag_of('png')}")]
    assert Host(tmp_path / "third", place, keys=keys).build() == TAKEN


@pytest.mark.parametrize(
    "path", ["../../../escaped", "/escaped", "v3/../../escaped", "build_cache/.hidden"]
)
def test_a_registry_writes_nowhere_but_into_a_mirror(
    tmp_path: Path, place: MakePlace, repository: OciRepository, path: str
) -> None:
    Host(tmp_path / "one", place).build()
    whole = repository.manifest(tag_of("png"))
    assert whole is not None
    layers = [
        {**layer, "annotations": {"org.opencontainers.image.title": path}}
        for layer in whole.content["layers"]
    ]
    repository.put_manifest(tag_of("png"), {**whole.content, "layers": layers})
    assert Host(tmp_path / "other", place).build() == ["took zlib", "compiled png"]
    assert not [
        found for found in tmp_path.parent.rglob("*") if found.name in ("escaped", ".hidden")
    ]


def test_readiness_says_whether_the_registry_is_there(
    tmp_path: Path, registry: ImageRegistry
) -> None:
    def asked(host: str) -> str:
        logins = {host: {"user": registry.user, "token": registry.password}}
        build = BuildSettings(
            tmp_folder=tmp_path,
            builder_home=PROJECT,
            base_image="base:1",
            spack_cache=f"oras://{host}/packages",
        )
        return described(build, RegistrySettings.model_validate({"logins": logins}))

    assert registry.host in asked(registry.host)
    with pytest.raises(Unavailable):
        asked(f"127.0.0.1:{free_port()}")


def test_a_registry_that_is_away_costs_time_only(tmp_path: Path) -> None:
    host = Host(
        tmp_path / "one",
        placed(
            opened(f"127.0.0.1:{free_port()}", "packages", user="u", password="p", folder=tmp_path)
        ),
        keys=KEY,
    )
    assert host.build() == COMPILED
    warnings = [
        line for line in host.heard.lines if line.startswith("Warning: no built packages could be")
    ]
    assert len(warnings) == 2


def test_a_wrong_password_costs_time_only_and_is_not_told(
    tmp_path: Path, registry: ImageRegistry
) -> None:
    host = Host(
        tmp_path / "one",
        placed(
            opened(
                registry.host,
                "packages",
                user=registry.user,
                password="canary-wrong",
                folder=tmp_path,
            )
        ),
    )
    assert host.build() == COMPILED
    assert not [line for line in host.heard.lines if "canary-wrong" in line]
