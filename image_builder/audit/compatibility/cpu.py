"""Tells whether the machine's CPU can execute what the image holds. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import archspec.cpu

from image_builder.audit.compatibility.rules import Finding, finding
from image_builder.docker import label_names
from image_builder.request import cpu_targets, host_cpu
from image_builder.request.machines import MachineFacts


def cpu_findings(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    """Yield what keeps the machine's CPU from executing what the image holds."""
    target = archspec.cpu.TARGETS.get(image.get(label_names.TARGET, ""))
    if target is None or image.get(label_names.PLATFORM) not in (None, machine.platform):
        return
    host = _host_cpu(machine)
    if host is None:
        if target.name != target.family.name:
            yield finding("cpu-unknown", image=target.name, machine=machine.name)
    elif not host_cpu.can_execute(host, target.name):
        missing = ", ".join(host_cpu.missing_features(host, target.name)[:5])
        yield finding(
            "cpu-lacks-features",
            image=target.name,
            machine=machine.name,
            host=host,
            lacks=f", which has no {missing}" if missing else "",
        )


def _host_cpu(machine: MachineFacts) -> str | None:
    if machine.architecture is None:
        return None
    name = cpu_targets.canonical_name(machine.architecture.strip().lower())
    return name if name in archspec.cpu.TARGETS else None
