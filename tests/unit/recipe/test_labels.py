"""What images say of themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from image_builder.recipe import labels
from image_builder.recipe.environment import Environment
from image_builder.request.parsing import parse_request
from tests.conftest import PROJECT

LOCKS = PROJECT / "tests" / "data" / "locks"
REQUEST = {
    "machine": {
        "platform": "linux/amd64",
        "architecture": "rome",
        "container_engine": "singularity",
        "mpi": "openmpi@4",
    },
    "workflow": "tutorial",
    "step_id": "lysozyme",
    "version": "v2",
}
ENVIRONMENT = Environment(target="zen2", mpi="openmpi@4")


def labels_of(
    request: dict[str, Any] = REQUEST,
    environment: Environment = ENVIRONMENT,
    lock: str | None = None,
) -> dict[str, str]:
    content = json.loads((LOCKS / f"{lock}.json").read_text("utf-8")) if lock else None
    return labels.image_labels(
        parse_request(request, allow_path=True),
        environment=environment,
        identity="i" * 64,
        recipe="1",
        workflow_commit="c" * 40,
        lock=content,
        workflow_source="https://someone:word@git.example.org/group/registry.git?token=word#x",
    )


def test_labels_say_what_the_image_is() -> None:
    assert labels_of(lock="spack-1.1-openmpi-haswell") == {
        "org.opencontainers.image.title": "tutorial/lysozyme",
        "org.opencontainers.image.version": "v2",
        "org.opencontainers.image.revision": "c" * 40,
        "org.opencontainers.image.source": "https://git.example.org/group/registry.git",
        "cic.request": '{"machine":{"architecture":"rome","container_engine":"singularity","mpi":"openmpi@4",'
        '"platform":"linux/amd64"},"step_id":"lysozyme","version":"v2","workflow":"tutorial"}',
        "cic.identity": "i" * 64,
        "cic.workflow": "tutorial",
        "cic.step": "lysozyme",
        "cic.workflow.commit": "c" * 40,
        "cic.platform": "linux/amd64",
        "cic.target": "zen2",
        "cic.mpi.name": "openmpi",
        "cic.mpi.family": "openmpi",
        "cic.mpi.version": "4.1.4",
        "cic.recipe": "1",
    }


def test_the_same_request_gives_the_same_labels_however_it_was_sent() -> None:
    sent = REQUEST | {"force": True, "push": False, "path": "/home/someone/description"}
    assert labels_of(sent) == labels_of()
    assert "someone" not in json.dumps(labels_of(sent))


@pytest.mark.parametrize(
    ("gpu", "arch", "lock", "expected"),
    [
        (
            "cuda@12",
            "80",
            "spack-0.23-cuda-zen2",
            {"runtime": "cuda", "version": "12.4.0", "arch": "80", "min_driver": "525.60.13"},
        ),
        (
            "cuda@11.8+dev",
            None,
            None,
            {"runtime": "cuda", "version": "11.8", "min_driver": "450.80.02"},
        ),
        (
            "hip@6",
            "gfx90a",
            "spack-1.1-rocm-zen3",
            {"runtime": "hip", "version": "6.2.1", "arch": "gfx90a"},
        ),
        ("cuda", None, None, {"runtime": "cuda"}),
    ],
)
def test_the_gpu_runtime_that_it_became(
    gpu: str, arch: str | None, lock: str | None, expected: dict[str, str]
) -> None:
    found = labels_of(environment=Environment(target="zen2", gpu=gpu, gpu_arch=arch), lock=lock)
    assert {
        key.removeprefix("cic.gpu."): value for key, value in found.items() if ".gpu." in key
    } == expected


@pytest.mark.parametrize("address", ["/var/git/registry.git", "file:///var/git/registry.git"])
def test_no_place_of_this_machine_is_told(address: str) -> None:
    assert labels.public_address(address) is None
