"""A request that names a finished build has all that the build's request had, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.plan.image_name import image_name
from image_builder.recipe.labels import canonical_request
from image_builder.sources.own_description import parse_any_request

MACHINE = {"platform": "linux/amd64", "architecture": "rome", "container_engine": "singularity"}
STEP = {"machine": {**MACHINE, "mpi": "openmpi@4"}, "workflow": "demo", "step_id": "hello"}
OWN = {"machine": MACHINE, "packages": ["fftw"], "visibility": "private", "force": True}
BUILDS = {"of-a-step": {**STEP, "push": True, "from_lock": "older"}, "own": OWN}


def kept(name: str) -> Mapping[str, Any]:
    if name not in BUILDS:
        raise InvalidRequest([FieldProblem("from_lock", "is no build of yours")])
    return BUILDS[name]


def parse(**fields: Any) -> Any:
    return parse_any_request(json.dumps(fields), kept=kept)


def fields_refused(**fields: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return [problem.field for problem in caught.value.problems]


def test_nothing_else_has_to_be_given() -> None:
    plain = parse_any_request(STEP)
    asked = parse(from_lock="of-a-step")
    assert asked == plain.model_copy(update={"from_lock": "of-a-step"})
    own = parse(from_lock="own")
    assert own.packages == ["fftw"] and own.is_private and not own.force


def test_how_it_is_built_may_be_said_anew() -> None:
    asked = parse(
        from_lock="of-a-step",
        force=True,
        push=False,
        visibility="private",
        machine={"container_engine": "docker", "architecture": "zen2"},
    )
    assert asked.force and asked.push is False and asked.is_private
    assert asked.machine.container_engine == "docker" and asked.machine.mpi == "openmpi@4"


def test_what_is_said_otherwise_is_refused_by_its_field() -> None:
    assert fields_refused(from_lock="of-a-step", machine={"architecture": "zen3"}) == [
        "machine.architecture"
    ]
    assert fields_refused(
        from_lock="of-a-step", machine={"mpi": "mpich@4"}, step_id="x", version="v1", slim=True
    ) == ["machine.mpi", "step_id", "version", "slim"]
    assert fields_refused(from_lock="own", packages=["lz4"]) == ["packages"]
    assert "packages" in fields_refused(from_lock="of-a-step", packages=["lz4"])


@pytest.mark.parametrize("name", ["unknown", "lock:" + "0" * 64, "--x", "", "x" * 300])
def test_what_names_no_build_is_refused(name: str) -> None:
    assert fields_refused(from_lock=name) == ["from_lock"]


def test_where_nothing_is_kept_a_name_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        parse_any_request({"from_lock": "of-a-step"})


@pytest.mark.parametrize("lock", [{}, {"roots": []}, 7, []])
def test_what_is_no_lock_is_refused(lock: Any) -> None:
    assert set(fields_refused(**STEP, from_lock=lock)) == {"from_lock"}


def test_it_does_not_take_the_name_of_what_was_built_since() -> None:
    plain, asked = parse_any_request(STEP), parse(from_lock="of-a-step")
    assert image_name(asked).image_id != image_name(plain).image_id
    assert canonical_request(asked) == canonical_request(plain)


def test_of_a_lock_the_digest_is_written_down() -> None:
    asked = parse_any_request(STEP).model_copy(update={"from_lock": {"roots": [1]}})
    written = asked.model_dump(mode="json")["from_lock"]
    assert written.startswith("lock:") and len(written) == 69
    assert type(asked).model_validate(asked.model_dump(mode="json")).from_lock == written
