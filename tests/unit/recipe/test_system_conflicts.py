"""Compilers, systems and packages that a workflow names and the image does not have."""

from __future__ import annotations

from typing import Any

import pytest

from image_builder.errors import BadDescription, ErrorCode
from tests.support.planning import base, composed, knowledge

OLD, NEW = (0, 23, 1), (1, 2, 0)


def conflict(text: str, **options: Any) -> BadDescription:
    with pytest.raises(BadDescription) as caught:
        composed(text, **options)
    assert caught.value.code is ErrorCode.CONFLICT
    return caught.value


def specs(spec: str) -> str:
    return f"spack:\n  specs:\n    - '{spec}'\n"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cmake%gcc@12.3", ["compiler gcc@12.3", "the image has gcc 12.2.0 alone"]),
        ("cmake%gcc@13", ["compiler gcc@13", "add gcc-13, g++-13, gfortran-13 under apt"]),
        ("cmake %intel@2021", ["compiler intel@2021"]),
        ("hdf5 ^cmake %oneapi", ["compiler oneapi"]),
        ("pcre2 os=rocky8", ["asks for rocky8, the image is debian12"]),
        ("pcre2 arch=linux-ubuntu22.04-haswell", ["asks for ubuntu22.04", "debian12"]),
        ("pcre2 arch=cray-cnl7-haswell", ["platform cray"]),
        ("pcre2 platform=darwin", ["platform darwin"]),
    ],
)
def test_what_the_image_does_not_have(spec: str, words: list[str]) -> None:
    error = conflict(specs(spec), spack=OLD)
    assert error.line == 3
    assert all(word in str(error) for word in words), str(error)


@pytest.mark.parametrize("release", [OLD, NEW])
@pytest.mark.parametrize(
    "spec",
    [
        "cmake%gcc",
        "cmake%gcc@12",
        "cmake%gcc@12.2.0",
        "cmake%gcc@11:",
        "pcre2 os=debian12",
        "pcre2 arch=linux-debian12-haswell",
        "pcre2 os=default_os",
    ],
)
def test_what_it_has(spec: str, release: tuple[int, ...]) -> None:
    assert composed(specs(spec), spack=release).spack is not None


def test_other_direct_dependencies_are_no_compilers() -> None:
    assert composed(specs("hdf5 %cmake@3.99"), spack=NEW).spack is not None
    assert "compiler gcc@13" in str(conflict(specs("hdf5 %c,cxx=gcc@13"), spack=NEW))


def test_compilers_of_apt_and_externals_count() -> None:
    assert composed("apt: [gcc-13]\n" + specs("cmake%gcc@13"), spack=OLD).spack is not None
    external = (
        "  packages:\n    gcc:\n      externals:\n      - {spec: gcc@13.1.0, prefix: /opt/gcc}\n"
    )
    assert composed(specs("cmake%gcc@13") + external, spack=OLD).spack is not None


def test_an_unknown_base_is_not_judged() -> None:
    unknown = base(OLD, compilers={}, os_id="", os_version="")
    text = "spack:\n  specs: ['cmake%gcc@99', 'pcre2 os=rocky8']\n"
    assert composed(text, apt_base=unknown).spack is not None


def test_a_preferred_compiler_is_no_demand() -> None:
    text = "spack:\n  specs: [zlib]\n  packages:\n    all:\n      compiler: [gcc@8]\n"
    assert composed(text, spack=OLD).spack is not None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hdf6", ["package hdf6", "Spack 1.2.0", "Write hdf5"]),
        ("hdf5 ^zlibb", ["package zlibb", "Write zlib"]),
        ("hdf5@99", ["hdf5@99", "2.1.0 is the newest"]),
        ("hdf5+mpii", ["variant mpii, which hdf5 does not have", "Write mpi"]),
        ("hdf5 ^cmake@99", ["cmake@99"]),
        ("hdf5@develop commit=develop", ["'develop', which is no commit's hash", "all 40 digits"]),
    ],
)
def test_what_this_spack_does_not_have(spec: str, words: list[str]) -> None:
    error = conflict(specs(spec), spack=NEW, knows=knowledge("1.2.0"))
    assert error.line == 3
    assert all(word in str(error) for word in words), str(error)
    assert "both" not in str(error), "no request could have it"


@pytest.mark.parametrize(
    "spec",
    [
        "hdf5@1.14+mpi",
        "hdf5 ++mpi",
        "hdf5 cflags=-O3 ^mpi",
        "hdf5@=99",
        "hdf5@git.abc=1.14",
        "exaca@master",
        "hdf5 build_type==Release",
        "builtin.hdf5",
        "hdf5 namespace=builtin",
        f"hdf5@develop commit={'0123456789' * 4}",
    ],
)
def test_what_it_has_or_may_have(spec: str) -> None:
    assert composed(specs(spec), spack=NEW, knows=knowledge("1.2.0")).spack is not None


def test_a_commit_in_a_spec_is_of_newer_releases() -> None:
    spec = f"hdf5@develop commit={'0123456789' * 4}"
    assert "the variant commit" in str(conflict(specs(spec), spack=OLD, knows=knowledge("0.23.1")))


def test_a_package_of_the_catalogue_is_its_own() -> None:
    knows = knowledge("1.2.0").without(["own", "hdf5"])
    text = "spack:\n  specs: ['own@7+x', 'hdf5@99+odd']\n"
    assert composed(text, spack=NEW, knows=knows).spack is not None


def test_a_preferred_compiler_that_is_not_there_is_told() -> None:
    text = "spack:\n  specs: [zlib]\n  packages:\n    all:\n      compiler: [gcc@8]\n"
    told = "eflows4hpc.yaml, line 5: the image has no gcc 8: Spack takes gcc 12.2.0 alone."
    assert told in composed(text, spack=OLD).warnings
    brought = composed(f"apt: [gcc-8, g++-8, gfortran-8]\n{text}", spack=OLD)
    assert not any("gcc 8" in warning for warning in brought.warnings)


def test_a_gcc_of_apt_that_compiles_c_alone_is_told() -> None:
    text = "apt: [gcc-11, g++-11]\nspack:\n  specs: [zlib]\n"
    (told,) = [
        one for one in composed(text, spack=OLD).warnings if "apt" in one or "C alone" in one
    ]
    assert told == (
        "eflows4hpc.yaml, line 1: gcc-11 compiles C alone: packages in Fortran need gfortran-11 too."
    )
