"""Specs as text: their shape, and what is read from them."""

from __future__ import annotations

import pytest

from image_builder.spack import spec


@pytest.mark.parametrize(
    "text",
    [
        "hdf5",
        "hdf5@1.14+mpi",
        "proj@7.2.0 curl=False tiff=False",
        "gromacs@2022.3~mpi^fftw~mpi",
        "kratos@9.4 apps=A,B,C",
        "exageostat@master",
        "builtin.zlib@=1.3.1",
        "a %gcc@12 ^[virtuals=mpi] openmpi@4.1:5",
        "a%c,cxx=gcc@12",
        "a%%gcc",
        "x@git.feature/y=1.2",
        "gcc@12 languages=c,c++",
        "a target=x86_64_v3:",
        "a cflags=-O3",
        "a cxxflags==-march=native",
        "$definition",
        "$^libraries",
        "compss@3.1 -shared",
    ],
)
def test_specs_that_are_fine(text: str) -> None:
    assert spec.problem(text) is None


@pytest.mark.parametrize(
    "text", ["@1.2", "+mpi", "%gcc@12", "target=zen2", "^fftw~mpi", "+cuda cuda_arch=80"]
)
def test_bare_constraints_are_fine_where_a_name_is_not_needed(text: str) -> None:
    assert spec.problem(text, named=False) is None
    assert spec.problem(text) is not None


def test_nodes_of_a_spec() -> None:
    root, compiler, mpi = spec.nodes(
        "hdf5@1.14+mpi~cxx api=v110 %gcc@12 ^[virtuals=mpi] openmpi@4.1:5 fabrics=ucx"
    )
    assert (root.sigil, root.name, root.version) == ("", "hdf5", "1.14")
    assert root.variants == {"mpi": "true", "cxx": "false", "api": "v110"}
    assert (compiler.sigil, compiler.name, compiler.version) == ("%", "gcc", "12")
    assert (mpi.sigil, mpi.name, mpi.version, mpi.variants) == (
        "^",
        "openmpi",
        "4.1:5",
        {"fabrics": "ucx"},
    )


def test_a_namespace_is_no_part_of_the_name() -> None:
    assert [node.name for node in spec.nodes("builtin.hdf5 ^mine.mpich")] == ["hdf5", "mpich"]


@pytest.mark.parametrize(
    ("one", "other", "disjoint"),
    [
        ("4", "4.1.4", False),
        ("4.1", "4", False),
        ("3", "4", True),
        ("4.1", "4.2", True),
        ("", "4", False),
        ("=4", "4", False),
        ("4:", "3", False),
        ("main", "4", False),
        ("10", "1", True),
    ],
)
def test_versions_that_exclude_each_other(one: str, other: str, disjoint: bool) -> None:
    assert spec.disjoint_versions(one, other) is disjoint


@pytest.mark.parametrize(
    ("asked", "target", "allowed"),
    [
        ("zen2", "zen2", True),
        ("zen2", "zen3", False),
        ("zen2,zen3", "zen3", True),
        ("x86_64_v2:", "haswell", True),
        ("x86_64_v4:", "haswell", False),
        (":x86_64_v4", "haswell", False),
        (":haswell", "x86_64_v3", True),
        ("x86_64:icelake", "haswell", True),
        (":", "haswell", True),
    ],
)
def test_targets_that_a_spec_allows(asked: str, target: str, allowed: bool) -> None:
    assert spec.target_allows(asked, target) is allowed


def test_targets_that_a_spec_asks_for() -> None:
    assert spec.targets_of(spec.nodes("a target=zen2 ^b arch=linux-debian12-haswell ^c")) == [
        "zen2",
        "haswell",
    ]
