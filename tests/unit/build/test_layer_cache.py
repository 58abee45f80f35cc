"""Where builders keep layers for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from image_builder.build.layer_cache import KEPT_STAGES, LayerCache, layer_cache
from image_builder.recipe.stages import FINAL_STAGE, LOCK_STAGE, SLIM_STAGE, USED_STAGE
from image_builder.settings import LibrarySettings
from tests.support.planning import pinned_inputs, request

REPOSITORY = "registry.test/group/cache"
PRIVATE = "registry.test/ada---demo_solver_haswell_nompi_nogpu:latest"


@pytest.fixture
def site(library_settings: LibrarySettings) -> LibrarySettings:
    build = library_settings.build.model_copy(update={"build_cache": REPOSITORY})
    return library_settings.model_copy(update={"build": build})


def put(settings: LibrarySettings, stage: str = FINAL_STAGE, **machine: Any) -> str | None:
    return layer_cache(request(**machine), pinned_inputs(), stage, settings).to_reference


def test_each_stage_puts_layers_at_its_own_place_and_takes_them_from_all(
    site: LibrarySettings,
) -> None:
    places = [layer_cache(request(), pinned_inputs(), stage, site) for stage in KEPT_STAGES]
    found = {place.from_references for place in places}
    assert [place.to_reference for place in places] == list(places[0].from_references)
    assert len(found) == 1 and len(set(*found)) == len(KEPT_STAGES) == 3
    assert all(one.startswith(f"{REPOSITORY}:") for one in places[0].from_references)
    looks = layer_cache(request(), pinned_inputs(), USED_STAGE, site)
    assert looks == LayerCache(places[0].from_references, None)


def test_steps_and_machines_have_places_of_their_own(site: LibrarySettings) -> None:
    machines: list[dict[str, Any]] = [
        {},
        {"step_id": "other"},
        {"platform": "linux/arm64", "architecture": "aarch64"},
        {"architecture": "zen2"},
        {"mpi": "openmpi@4"},
        {"gpu": "cuda@12"},
    ]
    assert len({put(site, **fields) for fields in machines}) == len(machines)
    assert put(site, architecture="rome") == put(site, architecture="zen2")
    assert len({put(site, stage) for stage in (LOCK_STAGE, FINAL_STAGE, SLIM_STAGE)}) == 3


def test_layers_of_a_private_image_stay_where_nobody_else_reads(site: LibrarySettings) -> None:
    private = pinned_inputs(image_id=PRIVATE)
    kept = layer_cache(request(), private, FINAL_STAGE, site)
    assert kept.to_reference is None and kept.from_references
    registry = site.registry.model_copy(update={"private": True})
    closed = site.model_copy(update={"registry": registry})
    assert layer_cache(request(), private, FINAL_STAGE, closed).to_reference is not None


def test_nothing_is_kept_without_a_repository_or_a_network(
    library_settings: LibrarySettings, site: LibrarySettings
) -> None:
    assert layer_cache(request(), pinned_inputs(), FINAL_STAGE, library_settings) == LayerCache()
    bundled = pinned_inputs(bundle=Path("/bundle"))
    assert layer_cache(request(), bundled, FINAL_STAGE, site) == LayerCache()
