"""Which compiler can make what, and which host can run it."""

from __future__ import annotations

import pytest

from image_builder.errors import ErrorCode, UserError
from image_builder.recipe import compilers
from image_builder.request import cpu_targets


@pytest.mark.parametrize(
    ("target", "version", "nearest"),
    [
        ("zen4", "12.2.0", "zen3"),
        ("zen2", "12.2.0", "zen2"),
        ("skylake_avx512", "4.8.5", "haswell"),
        ("neoverse_v2", "12.2.0", "neoverse_v2"),
        ("power10le", "9.4.0", "power9le"),
    ],
)
def test_the_nearest_target_that_a_gcc_can_make(target: str, version: str, nearest: str) -> None:
    assert compilers.nearest_makeable(target, [("gcc", version)]) == nearest


def test_one_compiler_that_can_is_enough() -> None:
    genoa = cpu_targets.resolve("genoa", "linux/amd64")
    compilers.check_target(genoa, [("gcc", "8.3.0"), ("gcc", "13.2.0")])
    compilers.check_target(genoa, [])
    with pytest.raises(UserError, match=r"gcc 8\.3\.0, clang 11\.0\.1") as caught:
        compilers.check_target(genoa, [("gcc", "8.3.0"), ("clang", "11.0.1")])
    assert caught.value.code is ErrorCode.COMPILER_TOO_OLD


def test_compilers_that_apt_brings() -> None:
    found = compilers.available(
        {"gcc": "12.2.0"}, ["gcc-8", "g++-8", "clang-15", "gcc-11:arm64=11.3.0-12", "jq"]
    )
    assert found == [("gcc", "12.2.0"), ("gcc", "8.99"), ("clang", "15.99"), ("gcc", "11.99")]


def test_compilers_that_a_workflow_names() -> None:
    assert compilers.named(["gcc@8", "%gcc@=12.2.0", "llvm@15", "gcc", "gcc@8:", "nvhpc@23"]) == [
        ("gcc", "8.99"),
        ("gcc", "12.2.0"),
        ("clang", "15.99"),
    ]
