"""What every CPU that archspec knows can execute, whatever CPU the tests run on."""

from __future__ import annotations

import pytest
from archspec.cpu import TARGETS
from archspec.cpu import host as this_cpu

from image_builder.audit import compatibility
from image_builder.request import cpu_targets, host_cpu
from image_builder.request.machines import MachineFacts

HOSTS = sorted(TARGETS)
BUILDABLE = sorted(
    name for name in TARGETS if cpu_targets.platform_of_family(TARGETS[name].family.name)
)
"""The CPUs of platforms that images can be built for."""

OLDEST_AVX2 = {"haswell", "x86_64_v3"}
SINCE_ZEN = OLDEST_AVX2 | {"ivybridge", "broadwell", "skylake"}
SINCE_ZEN4 = SINCE_ZEN | {"skylake_avx512", "cascadelake", "x86_64_v4"}


def descendants(name: str) -> list[str]:
    return sorted(host for host in HOSTS if TARGETS[host] >= TARGETS[name])


@pytest.mark.parametrize("host", HOSTS)
def test_a_cpu_executes_code_for_itself_and_its_ancestors(host: str) -> None:
    known = {host, *(cpu.name for cpu in TARGETS[host].ancestors)}
    assert known <= set(host_cpu.executable_targets(host))


@pytest.mark.parametrize("host", HOSTS)
def test_a_cpu_executes_nothing_of_another_family_or_of_descendants_with_more(host: str) -> None:
    for name in host_cpu.executable_targets(host):
        assert TARGETS[name].family == TARGETS[host].family
        assert not (
            TARGETS[name] > TARGETS[host] and TARGETS[name].features > TARGETS[host].features
        )


@pytest.mark.parametrize(
    ("ancestor", "executed"),
    [("excavator", OLDEST_AVX2), ("zen", SINCE_ZEN), ("zen4", SINCE_ZEN4)],
)
def test_amds_cpus_execute_code_for_intels_with_the_same_features(
    ancestor: str, executed: set[str]
) -> None:
    for host in descendants(ancestor):
        assert executed <= set(host_cpu.executable_targets(host)), host


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("zen3", "icelake"),
        ("icelake", "haswell"),
        ("skylake_avx512", "zen3"),
        ("broadwell", "excavator"),
        ("power9le", "power8le"),
        ("armv8.4a", "neoverse_n1"),
        ("armv9.0a", "neoverse_v1"),
        ("neoverse_v1", "neoverse_n1"),
        ("a64fx", "neoverse_n1"),
        ("x60", "u74mc"),
    ],
)
def test_what_a_cpu_cannot_execute(target: str, host: str) -> None:
    assert not host_cpu.can_execute(host, target)
    assert target not in host_cpu.executable_targets(host)


def test_arm_cpus_of_two_makers_execute_what_their_features_allow() -> None:
    assert host_cpu.can_execute("neoverse_v2", "neoverse_n2")
    assert host_cpu.can_execute("neoverse_n1", "thunderx2")


@pytest.mark.parametrize("host", BUILDABLE)
def test_warnings_and_compatibility_say_what_workers_say(host: str) -> None:
    """One answer for host warnings, smoke commands, workers and finished images."""
    executed = host_cpu.executable_targets(host)
    family = TARGETS[host].family.name
    for name in BUILDABLE:
        platform = cpu_targets.platform_of_family(TARGETS[name].family.name)
        assert platform is not None
        warned = host_cpu.host_warning(cpu_targets.resolve(name, platform), host)
        assert (warned is None) == (name in executed)
        if TARGETS[name].family.name == family:
            machine = MachineFacts(platform=platform, architecture=host)
            report = compatibility.check({"cic.platform": platform, "cic.target": name}, machine)
            assert report.ok == (name in executed), name


def test_an_emulated_build_says_so() -> None:
    target = cpu_targets.resolve("haswell", "linux/amd64")
    warning = host_cpu.host_warning(target, "neoverse_n1")
    assert warning is not None and "emulated" in warning
    assert host_cpu.is_emulated(target, "neoverse_n1")


def test_a_warning_names_the_host_and_what_may_happen() -> None:
    warning = host_cpu.host_warning(cpu_targets.resolve("zen3", "linux/amd64"), "icelake")
    assert warning is not None and "(icelake)" in warning and "illegal instruction" in warning


def test_this_host_can_execute_its_own_family() -> None:
    platform = cpu_targets.platform_of_family(this_cpu().family.name)
    assert platform is not None
    assert host_cpu.host_warning(cpu_targets.resolve(None, platform)) is None


def test_a_virtual_cpu_that_hides_a_feature_executes_what_the_others_are_enough_for() -> None:
    """archspec takes an EPYC without `pku` for x86_64_v4, which it lists no `aes` of."""
    shown = {*TARGETS["zen4"].features, "rdrand"} - {"pku"}  # which archspec does not list
    host = host_cpu.with_features("x86_64_v4", shown)
    haswell = cpu_targets.resolve("haswell", "linux/amd64")
    assert host_cpu.host_warning(haswell, "x86_64_v4") is not None
    assert host_cpu.host_warning(haswell, host) is None
    executed = set(host_cpu.executable_targets(host))
    assert {"zen", "zen2", "x86_64_v4"} <= executed
    assert not {"zen3", "zen4", "sapphirerapids"} & executed, "these have pku, or more"


def test_this_host_executes_what_its_features_are_enough_for() -> None:
    executed = set(host_cpu.executable_targets())
    cpu = this_cpu()
    assert {cpu.name, *(one.name for one in cpu.ancestors)} <= executed
