"""The audit against lock files that real Spack wrote; the wrong ones are changed in one place each,
or real too.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from image_builder.audit.lock_audit import Check, Problem, Verdict, audit, clashing_in_view
from image_builder.spack.lockfile import UnreadableLock
from tests.conftest import PROJECT

LOCKS = PROJECT / "tests" / "data" / "locks"
OPENMPI: dict[str, Any] = {
    "target": "haswell",
    "mpi": "openmpi@4",
    "gpu": None,
    "gpu_arch": None,
    "roots": ("mpi-hello", "lz4", "openmpi@4"),
}
CUDA: dict[str, Any] = {
    "target": "zen2",
    "mpi": None,
    "gpu": "cuda@12",
    "gpu_arch": "80",
    "roots": ("kokkos +cuda cuda_arch=80", "cuda@12"),
}
ROCM: dict[str, Any] = {
    "target": "zen3",
    "mpi": None,
    "gpu": "hip@6",
    "gpu_arch": "gfx90a",
    "roots": ("kokkos@4.2+rocm", "hip@6"),
}
BOTH = pytest.mark.parametrize("release", ["0.23", "1.1"])


def lock_of(name: str) -> dict[str, Any]:
    lock: dict[str, Any] = json.loads((LOCKS / f"spack-{name}.json").read_text("utf-8"))
    return lock


def node_of(lock: dict[str, Any], name: str) -> dict[str, Any]:
    return next(node for node in lock["concrete_specs"].values() if node["name"] == name)


def problems_of(verdict: Verdict, check: str) -> list[str]:
    return [problem.message for problem in verdict.problems if problem.check == check]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("0.19-openmpi-haswell", OPENMPI),
        ("0.23-openmpi-haswell", OPENMPI),
        ("1.1-openmpi-haswell", OPENMPI),
        ("1.2-groups-haswell", OPENMPI),
        (
            "0.23-openmpi-v3-required",
            {**OPENMPI, "target": "x86_64_v3", "roots": ("mpi-hello", "zlib", "openmpi@4")},
        ),
        (
            "1.1-openmpi-v3-required",
            {**OPENMPI, "target": "x86_64_v3", "roots": ("mpi-hello", "zlib", "openmpi@4")},
        ),
        (
            "0.23-mpich-haswell",
            {**OPENMPI, "mpi": "mpich@4", "roots": ("mpi-hello", "mpich@4~hydra device=ch3")},
        ),
        (
            "1.1-mpich-haswell",
            {**OPENMPI, "mpi": "mpich@4", "roots": ("mpi-hello", "mpich@4~hydra device=ch3")},
        ),
        ("0.23-cuda-zen2", CUDA),
        ("1.1-cuda-zen2", CUDA),
        ("0.23-rocm-zen3", ROCM),
        ("1.1-rocm-zen3", ROCM),
        ("1.1-rocm-zen3", {**ROCM, "gpu": "rocm@6"}),
        ("1.1-cuda-zen2", {**CUDA, "gpu_arch": "sm_80"}),
    ],
)
def test_a_lock_that_is_as_asked_for_passes(name: str, asked: dict[str, Any]) -> None:
    verdict = audit(lock_of(name), **asked)
    assert verdict.problems == ()
    assert verdict.ok
    assert all(check.ok for check in verdict.checks)
    assert verdict.checks[0].name == "target"


@BOTH
def test_one_wrong_target_is_named_and_nothing_else(release: str) -> None:
    lock = lock_of(f"{release}-openmpi-haswell")
    node = node_of(lock, "lz4")
    if isinstance(node["arch"]["target"], str):
        node["arch"]["target"] = "x86_64_v3"
    else:
        node["arch"]["target"]["name"] = "x86_64_v3"
    verdict = audit(lock, **OPENMPI)
    assert [(problem.check, problem.hash) for problem in verdict.problems] == [
        ("target", node["hash"])
    ]
    assert (
        f"lz4@1.10.0/{node['hash'][:7]} is built for x86_64_v3, not for haswell" in verdict.table()
    )


def test_a_target_that_spack_only_preferred_fails_for_every_built_node() -> None:
    lock = lock_of("0.23-cuda-zen2-soft")
    verdict = audit(lock, **{**CUDA, "roots": ("hwloc+cuda cuda_arch=80", "cuda@12")})
    built = {node["hash"] for node in lock["concrete_specs"].values() if not node.get("external")}
    assert {problem.hash for problem in verdict.problems} == built


def test_externals_may_have_any_target() -> None:
    lock = lock_of("1.1-openmpi-haswell")
    assert {node_of(lock, name)["arch"]["target"] for name in ("openmpi", "gcc", "glibc")} == {
        "x86_64"
    }
    assert audit(lock, **OPENMPI).ok


@BOTH
def test_two_mpis_are_both_named(release: str) -> None:
    verdict = audit(
        lock_of(f"{release}-two-mpis"), **{**OPENMPI, "roots": ("mpi-hello", "openmpi@4")}
    )
    messages = "\n".join(problems_of(verdict, "mpi"))
    assert "mpich@4.0.2" in messages and "is a second MPI beside openmpi@4" in messages
    assert "mpi-hello@1.0" in messages and "gets its MPI from mpich@4.0.2" in messages
    assert [check.name for check in verdict.checks if not check.ok] == ["mpi"]


def test_another_mpi_is_seen_in_a_lock_that_says_nothing_of_virtuals() -> None:
    verdict = audit(lock_of("0.19-openmpi-haswell"), **{**OPENMPI, "mpi": "mpich@4", "roots": ()})
    messages = problems_of(verdict, "mpi")
    assert any("gets its MPI from openmpi@4.1.4" in message for message in messages)
    assert any("there is no mpich" in message for message in messages)


def test_a_package_nobody_knows_as_an_mpi_counts_when_it_provides_one() -> None:
    text = json.dumps(lock_of("0.23-openmpi-haswell")).replace('"openmpi"', '"site-mpi"')
    verdict = audit(json.loads(text), **{**OPENMPI, "roots": ()})
    assert any(
        "gets its MPI from site-mpi@4.1.4" in message for message in problems_of(verdict, "mpi")
    )
    assert audit(json.loads(text), **{**OPENMPI, "mpi": "site-mpi@4", "roots": ()}).ok


@BOTH
def test_the_mpi_has_to_have_the_version_that_was_asked_for(release: str) -> None:
    verdict = audit(
        lock_of(f"{release}-openmpi-haswell"), **{**OPENMPI, "mpi": "openmpi@5", "roots": ()}
    )
    [message] = problems_of(verdict, "mpi")
    assert message.startswith("openmpi@4.1.4/") and "its version is 4.1.4" in message


def test_the_mpi_has_to_be_a_root() -> None:
    lock = lock_of("1.1-openmpi-haswell")
    lock["roots"] = [root for root in lock["roots"] if root["spec"] != "openmpi@4"]
    verdict = audit(lock, **{**OPENMPI, "roots": ("mpi-hello",)})
    assert len(verdict.problems) == 1 and "must be a root" in verdict.problems[0].message


@BOTH
def test_no_cuda_where_it_was_asked_for(release: str) -> None:
    verdict = audit(lock_of(f"{release}-openmpi-haswell"), **{**OPENMPI, "gpu": "cuda@12"})
    assert problems_of(verdict, "gpu") == ["cuda@12 was asked for, and there is no cuda"]
    [without] = [problem for problem in verdict.problems if problem.check == "gpu packages"]
    assert without.node.startswith("mpi-hello@1.0/") and "~cuda" in without.message


def test_a_package_may_be_excused_from_the_gpu() -> None:
    lock = lock_of("1.1-cuda-zen2")
    node_of(lock, "kokkos")["parameters"]["cuda"] = False
    asked = {**CUDA, "roots": ("kokkos", "cuda@12")}
    assert [problem.check for problem in audit(lock, **asked).problems] == ["gpu packages"]
    assert audit(lock, **asked, without_gpu=("kokkos",)).ok
    assert audit(lock, **{**asked, "roots": ("kokkos~cuda", "cuda@12")}).ok


@pytest.mark.parametrize(
    ("name", "asked", "found"),
    [
        ("1.1-cuda-zen2", {**CUDA, "gpu_arch": "90"}, "cuda_arch=80"),
        ("0.23-rocm-zen3", {**ROCM, "gpu_arch": "gfx942"}, "amdgpu_target=gfx90a"),
    ],
)
def test_another_gpu_architecture_names_the_package(
    name: str, asked: dict[str, Any], found: str
) -> None:
    [problem] = audit(lock_of(name), **asked).problems
    assert (
        problem.check == "gpu arch"
        and problem.node.startswith("kokkos@")
        and found in problem.message
    )


def test_the_other_gpu_runtime_is_a_second_one() -> None:
    verdict = audit(lock_of("1.1-rocm-zen3"), **{**ROCM, "gpu": "cuda@12", "roots": ()})
    assert any(
        "hip@6.2.1" in message and "second GPU runtime" in message
        for message in problems_of(verdict, "gpu")
    )


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("hdf5", "hdf5 was asked for and is no root"),
        ("lz4@1.9", "its version is 1.10.0"),
        ("lz4 libs=none", "without libs=none"),
        ("lz4~pic", "without ~pic"),
        ("gmake", "is no root"),
    ],
)
def test_every_requested_spec_has_to_be_there_as_requested(root: str, says: str) -> None:
    [problem] = audit(lock_of("1.1-openmpi-haswell"), **{**OPENMPI, "roots": (root,)}).problems
    assert problem.check == "specs" and says in problem.message


@pytest.mark.parametrize(
    "root",
    [
        "lz4@1.10:1",
        "lz4+pic libs=static",
        "builtin.lz4 %gcc@12 target=haswell",
        "mpi-hello ^openmpi@4",
        "mpi",
    ],
)
def test_ways_to_write_a_spec_that_is_there(root: str) -> None:
    lock = lock_of("1.1-openmpi-haswell")
    lock["roots"].append({"hash": node_of(lock, "openmpi")["hash"], "spec": "mpi"})
    assert audit(lock, **{**OPENMPI, "roots": (root,)}).problems == ()


def test_nodes_that_no_root_leads_to_do_not_count() -> None:
    lock = lock_of("1.1-openmpi-haswell")
    stray = copy.deepcopy(node_of(lock, "lz4")) | {"hash": "s" * 32}
    stray["arch"]["target"] = "zen4"
    lock["concrete_specs"]["s" * 32] = stray
    node_of(lock, "mpi-hello")["build_spec"] = {"name": "lz4", "hash": "s" * 32}
    assert audit(lock, **OPENMPI).ok


def test_a_verdict_survives_the_record_it_is_kept_in() -> None:
    verdict = audit(lock_of("0.23-two-mpis"), **OPENMPI)
    record = json.loads(json.dumps(verdict.as_dict()))
    assert tuple(Check(**check) for check in record["checks"]) == verdict.checks
    assert tuple(Problem(**problem) for problem in record["problems"]) == verdict.problems
    assert record["ok"] is False


@pytest.mark.parametrize(
    "lock",
    [
        {},
        {"roots": [{"hash": "a", "spec": "x"}], "concrete_specs": {}},
        {"roots": [], "concrete_specs": None},
        {"roots": None, "concrete_specs": {}},
    ],
)
def test_something_else_than_a_lock(lock: dict[str, Any]) -> None:
    if lock.get("roots") == []:
        assert audit(lock, **{**OPENMPI, "mpi": None, "roots": ()}).ok
        return
    with pytest.raises(UnreadableLock):
        audit(lock, **OPENMPI)


def two_of_zlib(types: list[str]) -> dict[str, Any]:
    """A lock in which two roots have a zlib each, as Spack 0.23 writes it."""

    def node(name: str, version: str, dependencies: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "name": name,
            "version": version,
            "arch": {"platform": "linux", "platform_os": "debian12", "target": "zen2"},
            "parameters": {},
            "dependencies": dependencies,
        }

    def edge(digest: str, name: str, types: list[str]) -> dict[str, Any]:
        return {"name": name, "hash": digest, "parameters": {"deptypes": types, "virtuals": []}}

    return {
        "spack": {"version": "0.23.1"},
        "roots": [{"hash": "a", "spec": "hdf5@1.10"}, {"hash": "b", "spec": "lz4"}],
        "concrete_specs": {
            "a": node(
                "hdf5", "1.10", [edge("z1", "zlib", ["link"]), edge("r1", "gcc-runtime", ["link"])]
            ),
            "b": node(
                "lz4", "1.9", [edge("z2", "zlib", types), edge("r2", "gcc-runtime", ["link"])]
            ),
            "z1": node("zlib", "1.2", []),
            "z2": node("zlib", "1.3", []),
            "r1": node("gcc-runtime", "11", []),
            "r2": node("gcc-runtime", "12", []),
        },
    }


def test_what_a_view_would_link_twice() -> None:
    ((one, other),) = clashing_in_view(two_of_zlib(["link"]))
    assert {one.version, other.version} == {"1.2", "1.3"} and one.name == "zlib"
    assert not clashing_in_view(two_of_zlib(["build"]))
    assert not clashing_in_view(two_of_zlib(["link"]), types={"run"})
    for name in ("0.19-openmpi-haswell", "0.23-mpich-haswell", "1.1-rocm-zen3"):
        assert not clashing_in_view(lock_of(name))


def test_words_behind_a_compiler_are_read_as_the_locks_spack_does() -> None:
    roots = {"roots": ("kokkos %gcc@12 ~cuda", "cuda@12")}
    lock = copy.deepcopy(lock_of("0.23-cuda-zen2"))
    for node in lock["concrete_specs"].values():
        if node["name"] == "kokkos":
            node["parameters"]["cuda"] = False
    assert "gpu packages" not in {one.check for one in audit(lock, **{**CUDA, **roots}).problems}
    lock["spack"]["version"] = "1.1.0"
    assert "gpu packages" in {one.check for one in audit(lock, **{**CUDA, **roots}).problems}
