"""Lockfiles from elsewhere: Spack's own pass, and parts that do not agree are named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from image_builder.spack import lock_check
from tests.conftest import PROJECT

LOCKS = sorted((PROJECT / "tests" / "data" / "locks").glob("*.json"))
Lock = dict[str, Any]


def read(name: str = "spack-1.1-openmpi-haswell") -> Lock:
    lock: Lock = json.loads((PROJECT / "tests" / "data" / "locks" / f"{name}.json").read_text())
    return lock


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_what_spack_wrote_is_whole(path: Any) -> None:
    assert lock_check.problems(json.loads(path.read_text())) == []


def a_node(lock: Lock) -> dict[str, Any]:
    """A node that needs others."""
    return next(node for node in lock["concrete_specs"].values() if node.get("dependencies"))


def needs_another(lock: Lock) -> None:
    a_node(lock)["dependencies"][0]["hash"] = "a" * 32


def needs_another_name(lock: Lock) -> None:
    a_node(lock)["dependencies"][0]["name"] = "not-this"


def has_a_stray(lock: Lock) -> None:
    node = copy.deepcopy(next(iter(lock["concrete_specs"].values())))
    lock["concrete_specs"]["b" * 32] = {**node, "hash": "b" * 32, "dependencies": []}


def needs_itself(lock: Lock) -> None:
    node = a_node(lock)
    node["dependencies"].append({"name": node["name"], "hash": node["hash"], "parameters": {}})


def says_another_hash(lock: Lock) -> None:
    a_node(lock)["hash"] = "c" * 32


def lost_a_node(lock: Lock) -> None:
    del lock["concrete_specs"][lock["roots"][0]["hash"]]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (needs_another, "which is not there"),
        (needs_another_name, "'not-this', and that hash is"),
        (has_a_stray, "no root leads to"),
        (needs_itself, "need each other"),
        (says_another_hash, "says that its hash is"),
        (lost_a_node, "is of a node which is not there"),
        (lambda lock: lock["_meta"].update({"lockfile-version": 9}), "its version is 9"),
        (lambda lock: lock["_meta"].pop("file-type"), "no spack.lock"),
        (lambda lock: lock.update(roots=[]), "roots is no list"),
        (lambda lock: lock.update(roots=7), "roots is no list"),
        (lambda lock: lock.update(concrete_specs=[]), "concrete_specs has no"),
        (lambda lock: lock.update(more={}), "'more' is not known"),
        (lambda lock: lock.update(include_concrete={"/x": {}}), "other environments"),
        (lambda lock: a_node(lock).update(name="../x"), "no package's name"),
        (lambda lock: a_node(lock).update(version=7), "has no version"),
        (lambda lock: a_node(lock).update(dependencies={}), "are no list"),
        (lambda lock: a_node(lock).update(arch=7), "cannot be read"),
        (lambda lock: a_node(lock).update(parameters=7), "are no object"),
        (lambda lock: a_node(lock)["parameters"].update(dev_path="/x"), "built from a folder"),
        (lambda lock: lock["concrete_specs"].update({"x y": {}}), "is no hash of a node"),
    ],
)
def test_what_does_not_agree_is_named(edit: Callable[[Lock], object], named: str) -> None:
    lock = read()
    edit(lock)
    assert any(named in problem for problem in lock_check.problems(lock))


@pytest.mark.parametrize("lock", [{}, {"_meta": 7}, {"_meta": {"file-type": ["x"] * 9999}}])
def test_any_other_object_is_no_lock(lock: Lock) -> None:
    (problem,) = lock_check.problems(lock)
    assert len(problem) < 300


def test_no_more_problems_are_named_than_help() -> None:
    lock = read()
    lock["roots"] = [{"spec": f"x{number}", "hash": "none"} for number in range(100)]
    assert len(lock_check.problems(lock)) == lock_check.MAX_PROBLEMS


@pytest.mark.parametrize(
    ("release", "target", "says"),
    [
        ((1, 1), "haswell", None),
        (None, "haswell", None),
        ((1, 2, 0), "haswell", "Spack 1.1"),
        ((1, 1), "zen2", '"architecture": "haswell"'),
    ],
)
def test_it_has_to_fit_the_base_image_and_the_machine(
    release: tuple[int, ...] | None, target: str, says: str | None
) -> None:
    unfit = lock_check.unfit(read(), release=release, platform="linux/amd64", target=target)
    assert (says is None) == (unfit is None)
    assert unfit is None or str(says) in " ".join(unfit)
