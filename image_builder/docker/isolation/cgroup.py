"""Limits what all build steps together use, by a control group that BuildKit starts them in.

The name of the group is part of BuildKit's key of a layer, so there is one group for all builds and
not one for each. Root makes it (`prepare`); the layouts of both kernels' versions are known. What
is in force is read from the kernel.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from image_builder.errors import Misconfigured
from image_builder.settings import BuildSettings

CGROUPS = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
OF_MEMORY = (7, 8)
"""The part of the machine's memory that build steps get where nothing is set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Holds the bounds for all build steps together; None stands for no bound."""

    memory_bytes: int | None
    pids: int | None
    cpus: float | None

    def __str__(self) -> str:
        parts = (
            (f"{self.memory_bytes} bytes of memory", self.memory_bytes),
            (f"{self.pids} processes", self.pids),
            (f"{self.cpus:g} CPUs" if self.cpus else "", self.cpus),
        )
        return ", ".join(text for text, value in parts if value is not None) or "nothing"


def wanted(settings: BuildSettings) -> Limits:
    """Return the limits that the settings ask for."""
    page = os.sysconf("SC_PAGE_SIZE")
    numerator, denominator = OF_MEMORY
    memory = (
        settings.steps_memory_bytes or os.sysconf("SC_PHYS_PAGES") * page * numerator // denominator
    )
    cpus = (
        None
        if settings.steps_cpus is None
        else round(settings.steps_cpus * CPU_PERIOD_US) / CPU_PERIOD_US
    )
    return Limits(memory_bytes=memory // page * page, pids=settings.steps_pids, cpus=cpus)


def prepare(settings: BuildSettings, *, root: Path = CGROUPS) -> bool:
    """Make the group, or update its limits, and return whether that was done.

    It is not where this user may not do it, or no group is wanted.
    """
    if settings.steps_cgroup is None:
        return False
    limits = wanted(settings)
    try:
        if (root / "cgroup.controllers").exists():
            (root / "cgroup.subtree_control").write_text("+cpu +memory +pids")
        for controller in ("cpu", "memory", "pids"):
            _folder(root, controller, settings.steps_cgroup).mkdir(exist_ok=True)
        for file, value in _files(root, settings.steps_cgroup, limits):
            file.write_text(value)
    except OSError:
        return False
    return in_force(settings, root=root) == limits


def remove(settings: BuildSettings, *, root: Path = CGROUPS) -> None:
    """Remove the group, with what runc made of it for other controllers.

    Raises `OSError` while steps run in it.
    """
    if settings.steps_cgroup is None:
        return
    name = settings.steps_cgroup
    for folder in [root / name] if _is_unified(root) else root.glob(f"*/{name}"):
        for path in (folder / "buildkit", folder):
            if path.is_dir():
                path.rmdir()


def in_force(settings: BuildSettings, *, root: Path = CGROUPS) -> Limits | None:
    """Return the limits that the kernel sets on build steps, or None where there is no group."""
    if settings.steps_cgroup is None:
        return None
    try:
        return _read(root, settings.steps_cgroup)
    except (OSError, ValueError):
        return None


def cgroup_of(settings: BuildSettings) -> str | None:
    """Return the group to name to BuildKit, if it exists."""
    return None if in_force(settings) is None else f"/{settings.steps_cgroup}"


def problem(settings: BuildSettings) -> Misconfigured | None:
    """Return why the wanted limits do not apply to build steps, or None when they do."""
    current, limits = in_force(settings), wanted(settings)
    if settings.steps_cgroup is not None and current == limits:
        return None
    if settings.steps_cgroup is None:
        return Misconfigured(
            "Build steps have no limits of memory, processes and CPU.",
            hint="Give build_cfg['steps_cgroup'] a name.",
        )
    what = "have no limits" if current is None else f"may use {current} instead of {limits}"
    return Misconfigured(f"Build steps {what}.", hint="As root: python3 isolate_builds.py apply.")


def _is_unified(root: Path) -> bool:
    return (root / "cgroup.controllers").exists()


def _folder(root: Path, controller: str, name: str) -> Path:
    return root / name if _is_unified(root) else root / controller / name


def _files(root: Path, name: str, limits: Limits) -> Iterator[tuple[Path, str]]:
    """Yield the kernel's files and what to write, in an order that it takes."""
    quota = None if limits.cpus is None else round(limits.cpus * CPU_PERIOD_US)
    if _is_unified(root):
        folder = root / name
        yield folder / "memory.max", _or("max", limits.memory_bytes)
        if (folder / "memory.swap.max").exists():
            yield folder / "memory.swap.max", "0"
        yield folder / "pids.max", _or("max", limits.pids)
        yield folder / "cpu.max", f"{_or('max', quota)} {CPU_PERIOD_US}"
        return
    memory = root / "memory" / name
    with_swap = (
        memory / "memory.memsw.limit_in_bytes"
    )  # it is never less than the limit of memory alone
    if with_swap.exists():
        yield with_swap, "-1"
    yield memory / "memory.limit_in_bytes", _or("-1", limits.memory_bytes)
    if with_swap.exists():
        yield with_swap, _or("-1", limits.memory_bytes)
    yield root / "pids" / name / "pids.max", _or("max", limits.pids)
    yield root / "cpu" / name / "cpu.cfs_period_us", str(CPU_PERIOD_US)
    yield root / "cpu" / name / "cpu.cfs_quota_us", _or("-1", quota)


def _or(none: str, value: int | None) -> str:
    return none if value is None else str(value)


def _read(root: Path, name: str) -> Limits:
    if _is_unified(root):
        memory, pids = (_number(root / name / file) for file in ("memory.max", "pids.max"))
        quota, period = (root / name / "cpu.max").read_text().split()
        return Limits(
            memory_bytes=memory,
            pids=pids,
            cpus=None if quota == "max" else int(quota) / int(period),
        )
    quota_us = int((root / "cpu" / name / "cpu.cfs_quota_us").read_text())
    period_us = int((root / "cpu" / name / "cpu.cfs_period_us").read_text())
    return Limits(
        memory_bytes=_number(root / "memory" / name / "memory.limit_in_bytes"),
        pids=_number(root / "pids" / name / "pids.max"),
        cpus=None if quota_us < 0 else quota_us / period_us,
    )


def _number(file: Path) -> int | None:
    """Return the number in a file, or None for `max` and for what version 1 says instead of it."""
    text = file.read_text().strip()
    return None if text == "max" or int(text) > 2**62 else int(text)
