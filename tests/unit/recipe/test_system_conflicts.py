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
        (
            "cmake%gcc@12.3",
            ["compiler gcc@12.3", "the image has gcc 12.2.0 alone", "Write gcc@12:"],
        ),
        ("cmake%gcc@11", ["compiler gcc@11", "add gcc-11, g++-11, gfortran-11 under apt"]),
        ("cmake%gcc@8", ["compiler gcc@8", "choose a base image that has it"]),
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
    assert composed("apt: [gcc-11]\n" + specs("cmake%gcc@11"), spack=OLD).spack is not None
    external = (
        "  packages:\n    gcc:\n      externals:\n      - {spec: gcc@13.1.0, prefix: /opt/gcc}\n"
    )
    assert composed(specs("cmake%gcc@13") + external, spack=OLD).spack is not None


def test_a_gcc_that_the_distribution_lacks_is_told() -> None:
    text = "apt: [gcc-11, g++-11, gfortran-11, g++-13]\n" + specs("zlib")
    (told,) = composed(text, spack=OLD).warnings
    assert told == (
        "eflows4hpc.yaml, line 1: debian12 has no g++-13: its packages are those of gcc 11 and 12."
    )


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
        ("hdf5@99", ["hdf5@99", "such as 2.1.0."]),
        ("hdf5@1.14.99", ["such as 1.14.", ", or 2.1.0, the newest"]),
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


CLANG = (
    "  packages:\n    llvm:\n      externals:\n      - {spec: llvm@14.0.6+clang, prefix: /usr}\n"
)


@pytest.mark.parametrize(
    "text",
    [
        specs("hdf5 %clang@14") + CLANG,
        specs("hdf5 %llvm@14") + CLANG,
        "apt: [clang-14]\n" + specs("hdf5 %clang@14"),
        "apt: [clang]\n" + specs("hdf5 %clang"),
        specs("hip %llvm-amdgpu"),
        specs("hdf5 %gcc@11.4.1")
        + "  packages:\n    gcc:\n      externals:\n      - {spec: gcc@11.4.1, prefix: /opt}\n",
        "spack:\n  specs:\n  - {group: tools, specs: [gcc@13]}\n"
        "  - {group: apps, needs: [tools], specs: [hdf5 %gcc@13]}\n",
    ],
)
def test_a_compiler_that_is_there_is_taken_by_either_name_in_any_version(text: str) -> None:
    assert composed(text, spack=NEW, knows=knowledge("1.2.0")).spack is not None


def test_an_exact_compiler_is_no_other_version() -> None:
    error = conflict(specs("cmake %gcc@=12"), spack=NEW)
    assert "gcc@=12" in str(error) and "Write gcc@12" in error.hint
    assert composed(specs("cmake %gcc@=12.2.0"), spack=NEW).spack is not None


def test_only_compilers_are_named_as_the_image_s() -> None:
    external = (
        "  packages:\n    python:\n      externals:\n      - {spec: python@3.11, prefix: /usr}\n"
    )
    error = conflict(specs("cmake %gcc@13") + external, spack=NEW)
    assert "the image has gcc 12.2.0 alone" in str(error)


@pytest.mark.parametrize("rule", ["gcc@8", "clang", "llvm@18", "rocmcc", "oneapi"])
def test_a_language_s_compiler_is_a_demand_as_well(rule: str) -> None:
    text = f"spack:\n  specs: [zlib]\n  packages:\n    c:\n      require: ['{rule}']\n"
    is_linked = rule == "rocmcc"  # ROCm's compiler is a library of its packages, too
    if is_linked:
        assert composed(text, spack=NEW).spack is not None
        return
    error = conflict(text, spack=NEW)
    assert f"compiler {rule}" in str(error) and error.line == 5
    assert composed(text, spack=OLD).spack is not None, "there, c is no package"


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("{zlib: {compiler: [intel@2021]}}", "the image has no intel 2021: Spack takes gcc 12.2.0"),
        ("{all: {compiler: [rocmcc]}}", "the image has no rocmcc: Spack takes gcc 12.2.0"),
        ("{all: {prefer: ['%gcc@8']}}", "asks for the compiler gcc@8, the image has gcc 12.2.0"),
    ],
)
def test_a_preferred_compiler_is_told_wherever_it_stands(rules: str, words: str) -> None:
    text = f"spack:\n  specs: [zlib]\n  packages: {rules}\n"
    (told,) = [
        one for one in composed(text, spack=NEW).warnings if "compiler" in one or "no" in one
    ]
    assert words in told and "the request counts" not in told


def test_everything_wrong_with_one_spec_is_told_at_once() -> None:
    spec = "hdf5@99+foo target=icelake os=rhel8 %gcc@8 ^mpich ^openmpi@99"
    error = conflict(specs(spec), spack=NEW, mpi="openmpi@4", knows=knowledge("1.2.0"))
    told = str(error)
    for words in ("target icelake", "rhel8", "compiler gcc@8", "MPI mpich", "hdf5@99", "foo"):
        assert told.count(words) == 1, told
    assert told.count("openmpi@99") == 1, "not that Spack does not have it, either"
    alone = str(conflict(specs("hdf5@99+foo+bar"), spack=NEW, knows=knowledge("1.2.0")))
    assert all(words in alone for words in ("hdf5@99", "variant foo", "variant bar"))


def test_a_conflict_has_the_line_of_the_part_that_brings_it() -> None:
    text = (
        "spack:\n  definitions:\n  - compilers: ['%gcc@8']\n  - libs: [zlib]\n"
        "  - versions: ['@99']\n  specs:\n  - matrix:\n    - [$libs]\n    - [$compilers]\n"
        "    - [$versions]\n"
    )
    error = conflict(text, spack=NEW, knows=knowledge("1.2.0"))
    assert "line 3: definitions: compilers asks for the compiler gcc@8" in str(error)
    assert "line 5: definitions: versions names zlib@99" in str(error)


def test_a_flag_without_quotes_around_it_is_no_variant() -> None:
    error = conflict(specs("hdf5 cflags=-O3 -g"), spack=NEW, knows=knowledge("1.2.0"))
    assert "variant g" in str(error) and "cflags='-O3 -g'" in error.hint


@pytest.mark.parametrize("asked", ["fe", "x86_64_v4:", "zen9"])
def test_a_target_that_no_request_can_name_is_not_advised(asked: str) -> None:
    assert conflict(specs(f"hdf5 target={asked}"), spack=NEW).hint == "Remove it."


def test_a_package_that_spack_does_not_have_is_told_where_it_means_nothing() -> None:
    text = (
        "spack:\n  specs: [zlib]\n  packages: {zlibb: {variants: +pic}, mpi: {prefer: [mpich]}}\n"
    )
    (told,) = composed(text, spack=NEW, knows=knowledge("1.2.0")).warnings
    assert "line 3: packages: zlibb is not used" in told and "Did you mean zlib" in told
