"""What makes two builds the same, and what does not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from image_builder.plan.identity import identity_of
from image_builder.request.parsing import parse_request
from image_builder.sources.own_description import own_step, parse_any_request

MACHINE = {
    "platform": "linux/amd64",
    "architecture": "zen2",
    "container_engine": "singularity",
    "mpi": "openmpi@4",
    "gpu": "cuda@12",
    "gpu_arch": "sm_80",
}
REQUEST = {
    "workflow": "w",
    "step_id": "s",
    "version": "v1",
    "force": False,
    "push": True,
    "slim": None,
}
INPUTS: dict[str, Any] = {
    "step_tree": "1" * 40,
    "base_digest": "sha256:" + "2" * 64,
    "packages_tree": "3" * 40,
    "config_tree": "4" * 40,
    "recipe_version": "1",
    "branch_commits": {"tool@main": "5" * 40},
}


def identity(**changes: Any) -> str:
    """The identity of one build, with some of its inputs changed."""
    machine = {key: changes.pop(key, value) for key, value in MACHINE.items()}
    fields = {key: changes.pop(key, value) for key, value in REQUEST.items()}
    return identity_of(parse_request({"machine": machine, **fields}), **{**INPUTS, **changes})


def test_an_own_description_has_the_identity_of_the_step_that_says_the_same() -> None:
    own = parse_any_request({"machine": MACHINE, "packages": ["fftw"], "name": "w/s"})
    tree = own_step(own).tree
    assert identity_of(own, **{**INPUTS, "step_tree": tree}) == identity(step_tree=tree)
    assert identity_of(own, **INPUTS) != identity(step_tree=tree)


def test_its_form() -> None:
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", identity())
    assert identity() == identity()


@pytest.mark.parametrize(
    "change",
    [
        {"step_tree": "0" * 40},
        {"base_digest": "sha256:" + "0" * 64},
        {"packages_tree": "0" * 40},
        {"packages_tree": None},
        {"config_tree": "0" * 40},
        {"config_tree": None},
        {"recipe_version": "2"},
        {"branch_commits": {}},
        {"branch_commits": {"tool@main": "0" * 40}},
        {"branch_commits": {"other@main": "5" * 40}},
        {"workflow": "x"},
        {"step_id": "x"},
        {"platform": "linux/arm64", "architecture": "a64fx"},
        {"architecture": "zen3"},
        {"architecture": None},
        {"mpi": "openmpi@5"},
        {"mpi": None},
        {"gpu": "cuda@11"},
        {"gpu": None},
        {"gpu_arch": "sm_90"},
        {"gpu_arch": None},
        {"runtime_digest": "sha256:" + "6" * 64},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_what_changes_the_image_changes_it(change: dict[str, Any]) -> None:
    assert identity(**change) != identity()


@pytest.mark.parametrize(
    "change",
    [
        {"slim": True},
        {"slim": False},
        {"version": "v2"},
        {"force": True},
        {"push": False},
        {"container_engine": "docker"},
        {"architecture": "rome"},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_what_does_not_change_the_image_does_not(change: dict[str, Any]) -> None:
    assert identity(**change) == identity()


def test_the_order_of_branches_does_not_matter() -> None:
    branches = {"a@main": "1" * 40, "b@main": "2" * 40}
    assert identity(branch_commits=branches) == identity(
        branch_commits=dict(reversed(branches.items()))
    )


def test_values_do_not_run_into_one_another() -> None:
    made = {
        identity(workflow=workflow, step_id=step)
        for workflow, step in [("ab", "c"), ("a", "bc"), ("c", "ab")]
    }
    assert len(made) == 3


def test_swapped_inputs_are_other_inputs() -> None:
    assert identity(packages_tree="4" * 40, config_tree="3" * 40) != identity()


def test_it_is_the_same_in_every_release() -> None:
    """Stored images are found by it: a change means that all are built anew. Raise IDENTITY_VERSION
    then.
    """
    assert identity() == "sha256:2d4449368daabe291f58de999fe5fe69d5bf43b85a22e35d729c12a585fba964"
