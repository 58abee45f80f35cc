"""Targets, platforms and the names people use for them."""

from __future__ import annotations

import archspec.cpu
import pytest

from image_builder.request import cpu_targets
from image_builder.request.cpu_targets import (
    UnknownName,
    known_targets,
    nearest,
    parse_platform,
    platform_of_family,
    resolve,
)

PRODUCTS = cpu_targets.facts()["products"]
FAMILIES = cpu_targets.facts()["families"]


@pytest.mark.parametrize("product", PRODUCTS)
def test_every_product_is_a_known_target_with_a_platform(product: str) -> None:
    cpu = archspec.cpu.TARGETS[PRODUCTS[product]]
    platform = platform_of_family(cpu.family.name)
    assert platform is not None
    target = resolve(product, platform)
    assert (target.name, target.family) == (cpu.name, FAMILIES[platform])
    if product in archspec.cpu.TARGETS:  # big-endian POWER, which nobody builds images for
        assert platform_of_family(archspec.cpu.TARGETS[product].family.name) is None
    assert product == product.lower()


@pytest.mark.parametrize(
    ("asked", "platform", "name"),
    [
        ("rome", "linux/amd64", "zen2"),
        ("milan", "linux/amd64", "zen3"),
        ("genoa", "linux/amd64", "zen4"),
        ("grace", "linux/arm64", "neoverse_v2"),
        ("power9", "linux/ppc64le", "power9le"),
        ("zen2", "linux/amd64", "zen2"),
        ("x86_64_v3", "linux/amd64", "x86_64_v3"),
        ("A64FX", "linux/arm64", "a64fx"),
        ("knl", "linux/amd64", "mic_knl"),
        (None, "linux/amd64", "x86_64"),
        ("none", "linux/arm64", "aarch64"),
        ("generic", "linux/ppc64le", "ppc64le"),
    ],
)
def test_what_a_name_means(asked: str | None, platform: str, name: str) -> None:
    target = resolve(asked, platform)
    assert (target.name, target.platform) == (name, platform)


@pytest.mark.parametrize(
    ("asked", "platform", "fitting"),
    [
        ("zen2", "linux/arm64", "linux/amd64"),
        ("rome", "linux/ppc64le", "linux/amd64"),
        ("grace", "linux/amd64", "linux/arm64"),
        ("power9le", "linux/amd64", "linux/ppc64le"),
    ],
)
def test_another_familys_platform_is_named(asked: str, platform: str, fitting: str) -> None:
    with pytest.raises(UnknownName) as caught:
        resolve(asked, platform)
    assert platform in caught.value.problem
    assert f'"platform": "{fitting}"' in caught.value.hint


def test_a_family_without_a_platform_is_refused() -> None:
    with pytest.raises(UnknownName) as caught:
        resolve("sparc64", "linux/amd64")
    assert caught.value.hint == "choose a x86_64 architecture"


@pytest.mark.parametrize(
    ("asked", "platform", "near"),
    [
        ("zenn2", "linux/amd64", "zen2"),
        ("skylake-avx", "linux/amd64", "skylake_avx512"),
        ("roma", "linux/amd64", "rome"),
        ("neoverse-v2", "linux/arm64", "neoverse_v2"),
        ("sapphire_rapids", "linux/amd64", "sapphirerapids"),
    ],
)
def test_the_nearest_names_are_told(asked: str, platform: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        resolve(asked, platform)
    assert near in caught.value.hint
    assert "GET /architecture/" in caught.value.hint


def test_near_names_are_of_the_platforms_family() -> None:
    with pytest.raises(UnknownName) as caught:
        resolve("power99", "linux/ppc64le")
    close = caught.value.hint.removeprefix("did you mean ").split("?")[0].split(" or ")
    assert {
        archspec.cpu.TARGETS[cpu_targets.canonical_name(name)].family.name for name in close
    } == {"ppc64le"}


def test_a_name_like_no_other_still_gets_a_hint() -> None:
    assert nearest("qqqqqqqq", archspec.cpu.TARGETS) == ()
    with pytest.raises(UnknownName) as caught:
        resolve("qqqqqqqq", "linux/amd64")
    assert caught.value.hint == "GET /architecture/ lists the known ones"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/amd64", "linux/amd64"),
        ("LINUX/AMD64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/ppc64le", "linux/ppc64le"),
    ],
)
def test_platforms(written: str, meant: str) -> None:
    assert parse_platform(written) == meant


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("linux/amd46", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("", "linux/"),
    ],
)
def test_unknown_platforms(written: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        parse_platform(written)
    assert near in caught.value.hint


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("linux-amd64", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64"),
        ("darwin/arm64", "linux/arm64"),
        ("windows/amd64", "linux/amd64"),
        ("ppc64le", "linux/ppc64le"),
    ],
)
def test_a_part_of_a_platform_s_name_says_which_is_meant(written: str, meant: str) -> None:
    with pytest.raises(UnknownName) as caught:
        parse_platform(written)
    assert caught.value.hint == f"write {meant}"


@pytest.mark.parametrize(
    ("asked", "platform", "words"),
    [
        ("epyc-7742", "linux/amd64", "one of naples"),
        ("xeon-gold-6148", "linux/amd64", "one of skylake_avx512"),
        ("amd", "linux/amd64", "one of naples"),
        ("intel", "linux/amd64", "sapphirerapids"),
        ("threadripper", "linux/amd64", "zen2"),
        ("core-avx2", "linux/amd64", "write haswell"),
        ("x86-64-v1", "linux/amd64", "write x86_64"),
        ("x86_64-v4", "linux/amd64", "write x86_64_v4"),
        ("armv8-a", "linux/arm64", "write aarch64"),
        ("armv9-a", "linux/arm64", "write armv9.0a"),
        ("apple-m2", "linux/arm64", "write m2"),
        ("kunpeng920", "linux/arm64", "write armv8.2a"),
    ],
)
def test_what_compilers_vendors_and_tools_call_a_cpu(asked: str, platform: str, words: str) -> None:
    with pytest.raises(UnknownName) as caught:
        resolve(asked, platform)
    assert words in caught.value.hint and "did you mean" not in caught.value.hint


def test_the_data_file_holds_together() -> None:
    assert set(FAMILIES.values()) <= set(archspec.cpu.TARGETS)
    assert set(cpu_targets.facts()["platform_aliases"].values()) <= set(FAMILIES)
    assert len(set(FAMILIES.values())) == len(FAMILIES), "a family has one platform"


def test_every_listed_target_can_be_asked_for() -> None:
    listed = known_targets()
    assert {"zen2", "neoverse_v2", "power9le", "x86_64"} <= {row["name"] for row in listed}
    for row in listed:
        for name in (row["name"], *row["aliases"]):
            assert resolve(name, row["platform"]).name == row["name"]
    assert {alias for row in listed for alias in row["aliases"]} == set(PRODUCTS)


@pytest.mark.parametrize(
    ("asked", "platform", "hint"),
    [
        ("amd64", "linux/amd64", "write x86_64"),
        ("znver3", "linux/amd64", "write zen3"),
        ("x86-64-v3", "linux/amd64", "write x86_64_v3"),
        ("native", "linux/amd64", "name the CPU"),
        ("avx2", "linux/amd64", "write x86_64_v3"),
        ("epyc", "linux/amd64", "rome, milan"),
        ("gh200", "linux/arm64", "write grace, and gh200 into gpu_arch"),
        ("armv8.2-a", "linux/arm64", "write armv8.2a"),
        ("arm64", "linux/arm64", "write aarch64"),
    ],
)
def test_names_that_say_something_else(asked: str, platform: str, hint: str) -> None:
    with pytest.raises(cpu_targets.UnknownName) as caught:
        cpu_targets.resolve(asked, platform)
    assert hint in caught.value.hint


@pytest.mark.parametrize("asked", ["amd65", "sparc9", "zenn", "cortex"])
def test_the_nearest_names_are_of_the_platforms_family(asked: str) -> None:
    with pytest.raises(cpu_targets.UnknownName) as caught:
        cpu_targets.resolve(asked, "linux/amd64")
    own = {one["name"] for one in cpu_targets.known_targets() if one["family"] == "x86_64"}
    own |= {
        alias
        for one in cpu_targets.known_targets()
        if one["name"] in own
        for alias in one["aliases"]
    }
    told = caught.value.hint.partition("?")[0].removeprefix("did you mean ").split(" or ")
    assert set(told) <= own or "did you mean" not in caught.value.hint
