"""What a request describes itself becomes a step with one file, or is refused by its places."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_builder.errors import InvalidRequest
from image_builder.host.cancellation import CancelToken
from image_builder.plan.image_name import image_name, request_digest
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import parse_request
from image_builder.sources import safe_yaml
from image_builder.sources.local_step import local_step
from image_builder.sources.own_description import (
    canonical_text,
    own_step,
    own_text,
    parse_any_request,
    read_own,
    write_own,
)
from tests.support.site import MACHINE

STEP = {"machine": MACHINE, "workflow": "demo", "step_id": "hello"}
WORDS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff"),
    max_size=20,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)


def asked(**fields: Any) -> BuildRequest:
    return parse_any_request({"machine": MACHINE, **fields})


def problems(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        asked(**fields)
    return {problem.field: problem.problem for problem in caught.value.problems}


@given(st.dictionaries(WORDS, VALUES, max_size=4))
def test_the_canonical_text_says_what_was_said(description: dict[str, Any]) -> None:
    assert safe_yaml.load(canonical_text(description), "x").value == description


def test_the_canonical_text_is_as_the_documentation_writes_it() -> None:
    description = {
        "slim": True,
        "smoke": ["sh", "-c", "echo 'a: b'"],
        "spack": {
            "specs": ["hdf5@1.14+mpi", {"matrix": [["fftw"], ["%gcc@12"]]}],
            "packages": {"all": {"compiler": ["gcc@12"]}},
        },
        "apt": ["bc", "gcc-12=12.2.0-14"],
    }
    assert canonical_text(description) == (
        "apt:\n"
        "  - bc\n"
        "  - gcc-12=12.2.0-14\n"
        "spack:\n"
        "  specs:\n"
        "    - hdf5@1.14+mpi\n"
        "    - matrix:\n"
        "        - - fftw\n"
        '        - - "%gcc@12"\n'
        "  packages:\n"
        "    all:\n"
        "      compiler:\n"
        "        - gcc@12\n"
        "smoke:\n"
        "  - sh\n"
        '  - "-c"\n'
        "  - \"echo 'a: b'\"\n"
        "slim: true\n"
    )


def test_packages_are_short_for_a_description() -> None:
    short, long = asked(packages=["fftw"]), asked(description={"spack": {"specs": ["fftw"]}})
    assert own_text(short) == own_text(long) == "spack:\n  specs:\n    - fftw\n"
    assert request_digest(short) == request_digest(long)
    assert image_name(short) == image_name(long)


def test_its_tree_is_that_of_a_folder_with_its_text(tmp_path: Any) -> None:
    request = asked(packages=["fftw"], name="demo/hello")
    step = own_step(request)
    write_own(step, tmp_path / "step", CancelToken())
    assert (tmp_path / "step" / "eflows4hpc.yaml").read_text("utf-8") == step.text
    assert local_step(tmp_path / "step", workflow="demo", step_id="hello").tree == step.tree
    assert (step.workflow, step.step_id) == ("demo", "hello")
    assert read_own(step).description == step.text


@pytest.mark.parametrize(
    ("name", "workflow", "step"),
    [(None, "own", "image"), ("solver", "own", "solver"), ("flows/solver", "flows", "solver")],
)
def test_names(name: str | None, workflow: str, step: str) -> None:
    request = asked(packages=["fftw"], name=name)
    assert (request.workflow_name, request.step_name) == (workflow, step)
    assert image_name(request).filename.startswith(f"{workflow}_{step}_x86_64_nompi_nogpu-")


def test_a_request_without_a_description_has_the_digest_that_it_had() -> None:
    """It was made before there were descriptions in requests."""
    assert request_digest(parse_request({**STEP, "version": "v1"})) == (
        "3eb22601a1abfd087ac9a4a9c5a5e72b1c963c65417020a1838ec018a9e6f763"
    )


def test_a_request_survives_its_stored_form() -> None:
    request = asked(description={"apt": ["bc"]}, name="x")
    stored = request.model_dump(mode="json")
    assert BuildRequest.model_validate(stored) == request == parse_any_request(stored)
    step = parse_request(STEP)
    assert parse_any_request(step.model_dump(mode="json")) == step


def test_every_wrong_entry_is_named_by_its_place() -> None:
    assert problems(
        description={
            "spack": {"specs": ["hdf5 1.14", "fftw"], "repos": []},
            "atp": ["a"],
            "apt": ["-x", 1],
        },
        name="a/../b",
    ).keys() == {
        "description.spack.specs[0]",
        "description.spack.repos",
        "description.atp",
        "description.apt[0]",
        "description.apt[1]",
        "name",
    }
    assert problems(packages=["hdf5 zlib", 3, "fftw"]).keys() == {"packages[0]", "packages[1]"}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, {"workflow", "step_id"}),
        ({"workflow": "w", "packages": ["fftw"]}, {"workflow", "packages"}),
        (
            {"workflow": "w", "step_id": "s", "description": {}},
            {"workflow", "step_id", "description"},
        ),
        ({"packages": ["fftw"], "description": {}}, {"packages"}),
        ({"packages": []}, {"packages"}),
        ({"packages": "fftw"}, {"packages"}),
        ({"description": ["fftw"]}, {"description"}),
        ({"packages": ["fftw"], "version": "v1"}, {"version"}),
        ({"workflow": "w", "step_id": "s", "name": "n"}, {"name"}),
        ({"packages": ["fftw"], "name": "BASE/BASE"}, {"name"}),
        ({"packages": ["fftw"], "name": "usr"}, {"name"}),
        ({"packages": ["fftw"], "name": "a/b/c"}, {"name"}),
        ({"packages": ["fftw"], "name": "-x"}, {"name"}),
        ({"description": {"apt": ["a\x07"]}}, {"description.apt[0]"}),
        ({"description": {"apt": ["a\ud800"]}}, {"description.apt[0]"}),
        ({"description": {"apt": ["a\u2028b"]}}, {"description.apt[0]"}),
        ({"description": {"slim": float("inf")}}, {"description.slim"}),
        ({"description": {"k" * 300: 1}}, {"description"}),
        ({"description": {"apt": ["bc"] * 30_000}}, {"description"}),
        ({"description": {"apt": ["b" * 300_000]}}, {"description"}),
        ({"description": {"spack": {"specs": [], "specs:": []}}}, {"description"}),
    ],
)
def test_what_is_refused(fields: dict[str, Any], wrong: set[str]) -> None:
    assert problems(**fields).keys() == wrong


def test_a_description_that_goes_deeper_than_any_is_refused() -> None:
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    (place,) = problems(description={"apt": deep})
    assert place.startswith("description.apt")


def test_where_no_description_is_taken_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="is not taken here"):
        parse_request({"machine": MACHINE, "packages": ["fftw"]})
