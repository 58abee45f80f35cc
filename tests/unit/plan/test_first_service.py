"""What was asked of the first service is answered as it was, or better: the requests of its examples
and pages, and every description of its registry that the corpus has.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from image_builder.errors import InvalidRequest
from image_builder.plan.image_name import image_name
from image_builder.recipe.environment import compose
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import parse_request
from tests.support.planning import CORPUS, base, corpus, described

REQUESTS = sorted((CORPUS / "requests").glob("*.json"))
EXAMPLE = {
    "machine": {
        "platform": "linux/amd64",
        "architecture": "rome",
        "container_engine": "singularity",
        "mpi": "openmpi@4",
        "gpu": "cuda@10",
    },
    "workflow": "minimal_workflow",
    "step_id": "wordcount",
    "force": False,
}
"""The first documentation's request."""
OFFERED = {
    "linux/amd64": "none x86_64 x86_64_v2 x86_64_v3 x86_64_v4 nocona core2 nehalem westmere sandybridge "
    "ivybridge haswell broadwell skylake mic_knl skylake_avx512 cannonlake cascadelake icelake k10 "
    "bulldozer piledriver steamroller excavator zen zen2 zen3 zen4",
    "linux/ppc64le": "none ppc64le power8le power9le",
    "linux/arm64/v8": "none aarch64 armv8.1a armv8.2a armv8.3a armv8.4a armv8.5a thunderx2 a64fx "
    "cortex_a72 neoverse_n1 neoverse_v1 m1 m2",
}
"""The platforms of the first service's page, with the architectures that go with each."""
OTHERS = ("arm", "i686", "pentium4", "ppc", "ppc64", "power7", "sparc", "sparc64", "x86")
"""Architectures of that page whose platforms it did not have: Spack failed in the build."""
RELEASES = ((0, 19, 2), (0, 20, 1), (0, 23, 1))
"""Of the Spack in its base images, and the last one that has its example's intel-mpi."""


def earlier_name(fields: dict[str, Any]) -> str:
    """The image's name as the first service formed it."""
    machine = fields["machine"]
    specs = [(machine.get(key) or f"no{key}").replace("@", "_") for key in ("mpi", "gpu")]
    parts = [fields["workflow"], fields["step_id"], machine["architecture"], *specs]
    return f"{'_'.join(parts)}:{fields.get('version', 'latest')}".lower()


def names_of(request: BuildRequest) -> tuple[str, str]:
    """The names of image and SIF, without the digits of a name that could mean two images."""
    made = image_name(request)
    return re.sub(r"-[0-9a-f]{8}:", ":", made.image_id), re.sub(
        r"-[0-9a-f]{8}_v_", "_v_", made.filename
    )


def asked(platform: str, architecture: str, **more: str) -> dict[str, Any]:
    machine = {"platform": platform, "architecture": architecture, "container_engine": "docker"}
    return {"machine": machine | more, "workflow": "minimal_workflow", "step_id": "wordcount"}


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_a_request_of_its_examples_has_the_name_that_it_had(path: Any) -> None:
    fields = json.loads(path.read_text())
    request = parse_request(path.read_bytes())
    assert names_of(request) == (
        earlier_name(fields),
        earlier_name(fields).replace(":", "_v_") + ".sif",
    )
    assert request.force is (fields.get("force") == "true")
    assert request.push is {"true": True, "false": False}.get(fields.get("push", "default"))


def test_the_documentations_request_has_its_whole_name() -> None:
    made = image_name(parse_request(json.dumps(EXAMPLE)), prefix="ghcr.io/eflows4hpc/")
    assert made.image_id == "ghcr.io/eflows4hpc/" + earlier_name(EXAMPLE)
    assert made.filename == "minimal_workflow_wordcount_rome_openmpi_4_cuda_10_v_latest.sif"


@pytest.mark.parametrize(
    ("platform", "architecture"),
    [(platform, name) for platform, names in OFFERED.items() for name in names.split()],
)
def test_every_architecture_of_its_page_is_taken(platform: str, architecture: str) -> None:
    for mpi, gpu in itertools.product(("", "openmpi@4.1.5"), ("", "cuda@11.8")):
        fields = asked(platform, architecture, mpi=mpi, gpu=gpu)
        request = parse_request(fields)
        family = request.machine.target.name
        fields["machine"]["architecture"] = architecture.replace("none", family)
        assert names_of(request)[0] == earlier_name(fields)


@pytest.mark.parametrize("architecture", OTHERS)
def test_what_no_platform_of_its_page_could_run_is_refused_at_once(architecture: str) -> None:
    for platform in OFFERED:
        with pytest.raises(InvalidRequest) as caught:
            parse_request(asked(platform, architecture))
        assert {problem.field for problem in caught.value.problems} == {"machine.architecture"}


@pytest.mark.parametrize("release", RELEASES, ids=str)
@pytest.mark.parametrize("step", corpus())
def test_every_description_is_planned_for_the_machines_that_were_asked_for(
    step: str, release: tuple[int, ...]
) -> None:
    for path in REQUESTS:
        machine = parse_request(path.read_bytes()).machine
        planned = compose(described(corpus()[step]), machine, base=base(release))
        assert machine.target.name in (planned.spack_yaml or machine.target.name), (step, path)
