"""What a bundle says of itself: shapes of a stranger's values, and for what it may be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from image_builder.bundle.manifest import (
    BadBundle,
    Manifest,
    is_path,
    read_manifest,
    require_for,
)
from image_builder.plan.digest import canonical_json
from image_builder.recipe.stages import LATEST_RECIPE
from image_builder.request.build_request import BuildRequest
from tests.support.bundles import changed, write_parts
from tests.support.planning import request


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_parts(tmp_path_factory.mktemp("bundle"), request())


def test_a_manifest_comes_back(manifest: Manifest) -> None:
    assert read_manifest(manifest.text()) == manifest


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../b",
        "/a",
        "a//b",
        "./a",
        "a/.",
        "a/",
        "",
        "a\nb",
        "a b",
        "a\\b",
        "é",
        "..",
        "a\0",
    ],
)
def test_paths_stay_in_the_folder(path: str, manifest: Manifest) -> None:
    assert not is_path(path)
    file = {"path": path, "sha256": "0" * 64, "size": 1}
    raw = json.loads(manifest.text()) | {"files": [file]}
    with pytest.raises(BadBundle, match="is no path"):
        read_manifest(canonical_json(raw) + b"\n")


@pytest.mark.parametrize(
    "path", ["a", "..a/b..c", "debs/system/g++_4%3a12.2.0-3~x_amd64.deb", ".x"]
)
def test_plain_paths_are_taken(path: str) -> None:
    assert is_path(path)


def file(path: str) -> dict[str, Any]:
    return {"path": path, "sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": [file("b"), file("a")]}, "not in order"),
        ({"files": [file("a"), file("a")]}, "twice"),
        ({"files": [file("A"), file("a")]}, "twice"),
        ({"files": [file("a"), file("a/b")]}, "is a folder, too"),
        ({"files": [file("a") | {"size": -1}]}, "size"),
        ({"files": [file("a") | {"sha256": "x"}]}, "sha256"),
        ({"identity": "latest"}, "identity"),
        ({"base": {"repository": "-v /:/host", "digest": "x", "config": "", "layers": []}}, "base"),
        ({"more": 1}, "more"),
        ({"step": {"tree": "../.."}}, "tree"),
        ({"files": None}, "files"),
    ],
)
def test_values_of_another_shape_are_refused(
    fields: dict[str, Any], said: str, manifest: Manifest
) -> None:
    raw = json.loads(manifest.text()) | fields
    with pytest.raises(BadBundle, match=said):
        read_manifest(canonical_json(raw) + b"\n")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format": 1}'])
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(BadBundle, match="manifest"):
        read_manifest(text)


def test_another_spelling_of_the_same_is_refused(manifest: Manifest) -> None:
    with pytest.raises(BadBundle, match="edited"):
        read_manifest(json.dumps(json.loads(manifest.text()), indent=1).encode())


def test_it_is_for_its_request(manifest: Manifest) -> None:
    require_for(manifest, request(), recipe=LATEST_RECIPE)
    forced = request().model_copy(update={"force": True, "push": False})
    require_for(manifest, forced, recipe=LATEST_RECIPE)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (request("other"), "step_id is 'solver' in the bundle, and 'other' in the request"),
        (request(mpi="openmpi@4"), "machine.mpi is not there in the bundle, and 'openmpi@4'"),
        (request(architecture="zen2"), "machine.architecture is 'haswell'"),
        (request(platform="linux/arm64", architecture="a64fx"), "is for linux/amd64, and the req"),
        (request().model_copy(update={"version": "v2"}), "version is 'latest'"),
        (request().model_copy(update={"slim": True}), "slim is not there"),
        (request().model_copy(update={"from_lock": "0" * 36}), "a lockfile of its own"),
    ],
)
def test_it_is_for_no_other_request(asked: BuildRequest, said: str, manifest: Manifest) -> None:
    with pytest.raises(BadBundle, match=said):
        require_for(manifest, asked, recipe=LATEST_RECIPE)


def test_it_is_for_one_version_of_the_service(manifest: Manifest) -> None:
    for other in (changed(manifest, format=2), changed(manifest, recipe="0")):
        with pytest.raises(BadBundle, match="same version of the service") as caught:
            require_for(other, request(), recipe=LATEST_RECIPE)
        assert caught.value.hint


def test_where_a_step_came_from_does_not_matter(tmp_path: Path) -> None:
    asked = request()
    assert asked.model_copy(update={"path": str(tmp_path)}).image_fields() == asked.image_fields()
