"""Finds machines of the catalogue by words: of their names, sites, CPUs and GPUs. Pure."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from image_builder.request import cpu_targets
from image_builder.request.machines import MachineEntry

VENDORS = {"cuda": "nvidia", "rocm": "amd", "hip": "amd"}
"""Who makes the GPUs of a runtime."""


def words_of(name: str, entry: MachineEntry) -> str:
    """Return all that a machine is found by, in lower case: a CPU by each of its names, too."""
    gpu_vendor = VENDORS.get((entry.gpu or "").partition("@")[0])
    said = (
        name,
        entry.title,
        entry.platform,
        *_names_of_cpu(entry.architecture),
        entry.mpi,
        entry.site_mpi,
        entry.gpu,
        entry.gpu_arch,
        gpu_vendor,
        entry.notes,
    )
    return " ".join(filter(None, said)).lower()


def found(machines: Mapping[str, MachineEntry], search: str) -> dict[str, MachineEntry]:
    """Return the machines that have every word of a search."""
    words = search.lower().split()
    return {
        name: entry
        for name, entry in machines.items()
        if all(word in words_of(name, entry) for word in words)
    }


def _names_of_cpu(architecture: str | None) -> tuple[str, ...]:
    return () if architecture is None else _cpu_names().get(architecture, (architecture,))


@functools.cache
def _cpu_names() -> dict[str, tuple[str, ...]]:
    """Return the names and the vendor of each CPU, by each of its names."""
    known = [
        (target["name"], target["vendor"], *target["aliases"])
        for target in cpu_targets.known_targets()
    ]
    return {name: names for names in known for name in (names[0], *names[2:])}
