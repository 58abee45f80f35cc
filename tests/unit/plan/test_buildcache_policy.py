"""Which builds share built packages, and which decisions of Spack are taken again."""

from __future__ import annotations

from typing import Any

import pytest

from image_builder.plan.buildcache_policy import incompatibility
from image_builder.plan.identity import cache_name, concretization_key, solver_cache_name
from image_builder.plan.inputs import Inputs
from image_builder.recipe.environment import Environment, compose
from image_builder.sources.software_catalogue import PinnedCatalogue
from image_builder.sources.step import StepRef
from image_builder.spack.releases import installs_in_parallel, keeps_solutions, pushes_by_itself
from tests.support.planning import base, described, request
from tests.support.planning import pinned_inputs as inputs

PLATFORM = "linux/amd64"
TEXT = "apt: [jq]\nspack:\n  specs: [lz4]\n"


def environment(text: str = TEXT, **machine: str) -> Environment:
    return compose(described(text), request("s", **machine).machine, base=base())


def names(one: Environment, pinned: Inputs) -> tuple[str, str]:
    return cache_name(one, pinned, PLATFORM), concretization_key(one, pinned, PLATFORM)


@pytest.mark.parametrize(
    "changed",
    [
        inputs(base=base(digest="sha256:" + "5" * 64)),
        inputs(catalogue=PinnedCatalogue(packages_tree="2" * 40)),
        inputs(recipe_version="2"),
    ],
)
def test_what_changes_binaries_but_no_hash_has_a_cache_of_its_own(changed: Inputs) -> None:
    before, after = names(environment(), inputs()), names(environment(), changed)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    "text", ["apt: [jq, bc]\nspack:\n  specs: [lz4]\n", "spack:\n  specs: [lz4]\n"]
)
def test_other_debian_packages_have_a_cache_of_their_own(text: str) -> None:
    assert names(environment(text), inputs())[0] != names(environment(), inputs())[0]


def test_other_specs_and_packages_share_the_cache_and_are_concretized_anew() -> None:
    before = names(environment(), inputs())
    other_specs = names(environment(TEXT.replace("lz4", "bzip2")), inputs())
    other_catalogue = names(
        environment(),
        inputs(catalogue=PinnedCatalogue(packages_tree="9" * 40, config_tree="3" * 40)),
    )
    for after in (other_specs, other_catalogue):
        assert after[0] == before[0]
        assert after[1] != before[1]


def test_a_branch_that_moved_is_concretized_anew() -> None:
    assert (
        names(environment(), inputs(branch_commits={"a@main": "6" * 40}))[1]
        != names(environment(), inputs())[1]
    )


def test_the_steps_own_files_change_neither() -> None:
    moved = inputs(
        step=StepRef(workflow="w", step_id="s", version="latest", tree="7" * 40, commit=None)
    )
    assert names(environment(), moved) == names(environment(), inputs())


def node(**fields: Any) -> dict[str, Any]:
    return {
        "name": "app",
        "version": "1.0",
        "parameters": {"build_type": "Release", "cflags": [], "shared": True},
        **fields,
    }


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": "git." + "a" * 40 + "=1.0"}, "commit"),
        ({"version": "a" * 40}, "commit"),
        ({"version": "git.main=1.0"}, "commit"),
        ({"parameters": {"dev_path": "/tmp"}}, "folder"),
        ({"parameters": {"cflags": ["-wrapper", "sh,-c,evil"]}}, "flags"),
        ({"parameters": {"extra": "$(evil)"}}, "extra"),
        ({"parameters": {"extra": ["a", "b c"]}}, "extra"),
    ],
)
def test_specs_that_run_code_of_the_workflows_choosing_see_no_cache(
    fields: dict[str, Any], reason: str
) -> None:
    lock = {"concrete_specs": {"a" * 32: node(**fields)}}
    assert reason in (incompatibility(environment(), lock, (0, 23, 1)) or "")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"version": "main"},
        {"parameters": {"languages": ["c", "c++"]}},
        {"external": {"path": "/usr"}, "parameters": {"extra": "$(any)"}},
    ],
)
def test_plain_specs_see_it(fields: dict[str, Any]) -> None:
    assert (
        incompatibility(environment(), {"concrete_specs": {"a" * 32: node(**fields)}}, (0, 23, 1))
        is None
    )


def test_an_external_that_names_programs_sees_no_cache() -> None:
    text = (
        "spack:\n  specs: [lz4]\n  packages:\n    cmake:\n      externals:\n      - spec: cmake@3.25\n"
        "        prefix: /usr\n"
    )
    assert incompatibility(environment(text), {}, (0, 23)) is None
    more = text + "        extra_attributes:\n          compilers:\n            c: /opt/any/cc\n"
    assert "cmake" in (incompatibility(environment(more), {}, (0, 23)) or "")


@pytest.mark.parametrize("version", [None, (0, 18, 1)])
def test_older_releases_have_no_cache(version: tuple[int, ...] | None) -> None:
    assert incompatibility(environment(), {}, version)


@pytest.mark.parametrize(
    ("version", "pushes", "is_parallel"),
    [
        ((0, 19, 2), False, False),
        ((0, 21), False, False),
        ((0, 22), True, False),
        ((1, 1, 2), True, False),
        ((1, 2, 0), True, True),
    ],
)
def test_what_releases_do_not_do_by_themselves_the_recipe_does(
    version: tuple[int, ...], pushes: bool, is_parallel: bool
) -> None:
    assert incompatibility(environment(), {}, version) is None
    assert pushes_by_itself(version) is pushes
    assert installs_in_parallel(version) is is_parallel


def test_solutions_are_shared_by_builds_on_one_base_image_alone() -> None:
    name = solver_cache_name(inputs(), PLATFORM)
    assert name == solver_cache_name(inputs(catalogue=PinnedCatalogue()), PLATFORM)
    others = [
        solver_cache_name(inputs(base=base(digest="sha256:" + "5" * 64)), PLATFORM),
        solver_cache_name(inputs(), "linux/arm64"),
        solver_cache_name(inputs(recipe_version="2"), PLATFORM),
    ]
    assert len({name, *others}) == 4
    assert [keeps_solutions(version) for version in (None, (1, 1, 2), (1, 2))] == [
        False,
        False,
        True,
    ]
