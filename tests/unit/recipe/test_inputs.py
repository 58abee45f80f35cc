"""Inputs of the world, as small as they can be: each gets the right answer on every release."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from image_builder.errors import BadDescription
from image_builder.recipe.environment import Environment, compose
from image_builder.recipe.externals import externals_list
from image_builder.sources.branch_versions import branch_refs, specs_of
from image_builder.sources.description import parse_description
from image_builder.sources.step import StepFolder
from tests.conftest import PROJECT
from tests.support.planning import base, machine

INPUTS = PROJECT / "tests" / "data" / "inputs.yaml"
RELEASES = [(0, 23, 1), (1, 1, 0), (1, 2, 0)]
FOO = """
class Foo(Package):
    git = "https://example.org/foo"
    version("main", branch="main")
    version("1.0", sha256="00")
"""
CASES: list[dict[str, Any]] = yaml.safe_load(INPUTS.read_text("utf-8"))


def folder(files: dict[str, str]) -> StepFolder:
    """A fake of a step's folder."""

    def kind_of(path: str) -> Literal["file", "folder"] | None:
        if path in files:
            return "file"
        return "folder" if any(Path(path) in Path(one).parents for one in files) else None

    return StepFolder(kind_of=kind_of, read=files.get)


def planned(case: dict[str, Any], release: tuple[int, ...]) -> Environment:
    files: dict[str, str] = case["files"]
    return compose(
        parse_description(files["eflows4hpc.yaml"], "eflows4hpc.yaml"),
        machine(**case.get("machine", {})),
        base=base(release),
        requirements=files.get("requirements.txt"),
        step=folder(files),
    )


def refusal_of(case: dict[str, Any], release: tuple[int, ...]) -> list[str]:
    is_new = release >= (1, 0)
    return [*case.get("refused", []), *(case.get("refused_from_1_0", []) if is_new else [])]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: ".".join(map(str, release)))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_each_input_gets_the_right_answer(case: dict[str, Any], release: tuple[int, ...]) -> None:
    words = refusal_of(case, release)
    if words:
        with pytest.raises(BadDescription) as caught:
            planned(case, release)
        told = f"{caught.value.code.value} {caught.value}"
        assert [word for word in words if word not in told] == [], told
        assert caught.value.hint and caught.value.line == case.get("line", caught.value.line)
        return
    environment = planned(case, release)
    warnings = "\n".join(environment.warnings)
    assert [word for word in case.get("warns", []) if word not in warnings] == [], warnings
    _check_spack(case, environment, release)
    if "in_step" in case:
        assert environment.requirements_in_step is case["in_step"]


def _check_spack(case: dict[str, Any], environment: Environment, release: tuple[int, ...]) -> None:
    description = parse_description(case["files"]["eflows4hpc.yaml"], "eflows4hpc.yaml")
    packages = (environment.spack or {}).get("packages", {})
    of_release = "requires_from_1_2" if release >= (1, 2) else "requires_before_1_2"
    for name, rule in {**case.get("requires", {}), **case.get(of_release, {})}.items():
        assert rule in packages[name]["require"]
        assert rule != "~cuda" or name in environment.without_gpu
    if release >= (1, 0):
        for name, compiler in case.get("prefers_from_1_0", {}).items():
            assert packages[name]["prefer"] == [compiler]
    pins = branch_refs([specs_of(description.spack or {})], {"foo": FOO}.get)
    assert [str(pin) for pin in pins] == case.get("pins", [])
    assert all(path in externals_list(description) for path in case.get("looks_for", []))
    if "view" in case:
        view = (environment.spack or {})["view"]
        assert (view["default"]["root"] if isinstance(view, dict) else view) == case["view"]
