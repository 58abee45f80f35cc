"""Knows what a CPU can execute: this host's, a worker's or a machine's.

archspec knows a CPU's ancestors and its features. It knows too little of some features (those are
in `data/targets.yaml`), and of the Arm architecture's releases no features at all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from archspec.cpu import TARGETS, Microarchitecture
from archspec.cpu import host as nearest_to_this_cpu
from archspec.cpu.detect import detected_info

from image_builder.request import cpu_targets
from image_builder.request.cpu_targets import Target


def host_warning(target: Target, host: str | Microarchitecture | None = None) -> str | None:
    """Return a warning if the building `host` cannot run programs for `target`, or None.

    `host` is an archspec name or a CPU; None is this machine. Build tools are compiled for the target, too,
    and run during the build.
    """
    cpu = _cpu(host)
    if is_emulated(target, host):
        return (
            f"This host's CPU ({cpu.name}) is not {target.family}: the build is emulated, which is slow, "
            "and the emulator may lack instructions of the target."
        )
    if _executes(cpu, TARGETS[target.name]):
        return None
    return (
        f"This host's CPU ({cpu.name}) cannot execute code for {target.name}: a build tool made for it may stop "
        "with an illegal instruction."
    )


def executable_targets(host: str | Microarchitecture | None = None) -> list[str]:
    """Return the targets whose programs the `host` can execute.

    `host` is an archspec name or a CPU; None is this machine.
    """
    cpu = _cpu(host)
    return sorted(name for name, wanted in TARGETS.items() if _executes(cpu, wanted))


def can_execute(host: str, target: str) -> bool:
    """Return whether the CPU `host` executes programs for `target`; both are archspec's names."""
    return _executes(TARGETS[host], TARGETS[target])


def missing_features(host: str, target: str) -> list[str]:
    """Return the features that programs for `target` may use and the CPU `host` lacks."""
    return sorted(TARGETS[target].features - _features(TARGETS[host]))


def is_emulated(target: Target, host: str | Microarchitecture | None = None) -> bool:
    """Return whether `target` is of another family than the building `host`, and so emulated."""
    return bool(_cpu(host).family != TARGETS[target.name].family)


def with_features(name: str, features: Iterable[str]) -> Microarchitecture:
    """Return the CPU that archspec calls `name`, with more features than it lists for that one."""
    known = TARGETS[name]
    return Microarchitecture(
        name, known.parents, known.vendor, {*known.features, *features}, known.compilers
    )


def _cpu(host: str | Microarchitecture | None) -> Microarchitecture:
    if host is None:
        return _this_cpu()
    return TARGETS[host] if isinstance(host, str) else host


@functools.cache
def _this_cpu() -> Microarchitecture:
    """Return this machine's CPU with the features that it tells of.

    A virtual machine may hide a feature of its CPU, for which archspec 0.2.5 takes a generic one
    that lacks many others.
    """
    return with_features(nearest_to_this_cpu().name, detected_info().features)


def _executes(cpu: Microarchitecture, wanted: Microarchitecture) -> bool:
    """Return whether a CPU executes code for another.

    It does for itself, for its ancestors, and for other vendors' CPUs whose features and whose
    architecture's release it has, such as haswell on zen2. Where archspec lists no features
    (Power), only descent counts.
    """
    if wanted.name == cpu.name or wanted in cpu.ancestors:
        return True
    return bool(
        wanted.family == cpu.family
        and wanted.features
        and wanted.features <= _features(cpu)
        and _releases(wanted) <= _releases(cpu)
    )


def _features(cpu: Microarchitecture) -> frozenset[str]:
    listed = (_unlisted_features().get(one.name, frozenset()) for one in (cpu, *cpu.ancestors))
    return frozenset(cpu.features).union(*listed)


def _releases(cpu: Microarchitecture) -> frozenset[str]:
    """Return the generic targets behind a CPU: `x86_64_v3`, `armv8.2a`."""
    return frozenset(one.name for one in (cpu, *cpu.ancestors) if one.vendor == "generic")


@functools.cache
def _unlisted_features() -> dict[str, frozenset[str]]:
    """Return the features that archspec 0.2.7 does not list for a CPU and its descendants."""
    unlisted = cpu_targets.facts()["unlisted_features"]
    return {name: frozenset(features.split()) for name, features in unlisted.items()}
