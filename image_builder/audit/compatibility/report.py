"""Checks an image against a machine: all findings, and the line that runs the image there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.audit.compatibility.cpu import cpu_findings
from image_builder.audit.compatibility.gpu import gpu_findings
from image_builder.audit.compatibility.mpi import mpi_findings
from image_builder.audit.compatibility.rules import ERROR, Answer, Finding, finding
from image_builder.audit.compatibility.system import (
    kernel_findings,
    library_findings,
    sif_findings,
)
from image_builder.docker import label_names
from image_builder.launch.commands import PROGRAM, run_command
from image_builder.launch.facts import runs_sifs
from image_builder.request.machines import MachineFacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Holds what the check found, and the command line that runs the image there."""

    findings: tuple[Finding, ...]
    run_command: str
    unknown: tuple[str, ...] = ()
    """What could not be checked, as the image or the machine does not say it."""

    @property
    def ok(self) -> bool:
        return self.answer != "does_not_run"

    @property
    def answer(self) -> Answer:
        """Return whether the image runs there, runs with a loss, or does not run."""
        if any(one.level == ERROR for one in self.findings):
            return "does_not_run"
        return "runs_but" if self.findings else "runs"

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "answer": self.answer,
            "findings": [
                {**dataclasses.asdict(one), "source": list(one.source)} for one in self.findings
            ],
            "unknown": list(self.unknown),
            "run_command": self.run_command,
        }


def check(
    image: Mapping[str, str],
    machine: MachineFacts,
    *,
    file: str = "image.sif",
    reference: str | None = None,
    is_pushed: bool | None = None,
    compressor: str | None = None,
    program: str = PROGRAM,
) -> Report:
    """Return whether an image with the labels `image` works on `machine`.

    `file` is the SIF, `reference` its name in an image registry, where `is_pushed` says whether it
    is there (None: not known), `compressor` how the SIF's files are compressed, and `program` what
    to run in it.
    """
    findings = [
        *_platform_findings(image, machine),
        *_engine_findings(machine, is_pushed),
        *kernel_findings(image, machine),
        *sif_findings(compressor, machine),
        *cpu_findings(image, machine),
        *mpi_findings(image, machine),
        *library_findings(image, machine),
        *gpu_findings(image, machine),
    ]
    return Report(
        findings=tuple(findings),
        unknown=tuple(_unknown(image, machine)),
        run_command=run_command(image, machine, file=file, reference=reference, program=program),
    )


def _unknown(image: Mapping[str, str], machine: MachineFacts) -> Iterator[str]:
    """Yield what was not checked, and how it could be."""
    if label_names.PLATFORM in image and label_names.FACTS not in image:
        yield (
            "The image was built before its files were looked at: its C library, networks and GPU code"
            ' are not known. Build it with "force": true to know them.'
        )
    elif label_names.MPI_FAMILY in image and label_names.MPI_PMI not in image:
        yield "How the ranks of the image's MPI find each other is not known: none of its files says so."
    missing = [
        called
        for called, fact in (("kernel", machine.kernel), ("glibc", machine.glibc))
        if fact is None
    ]
    if label_names.MPI_FAMILY in image and not (machine.libfabric or machine.ucx or machine.fabric):
        missing.append("networks")
    if missing and label_names.FACTS in image:
        yield f"Of {machine.name} these facts are not known: {', '.join(missing)}. `cic_cli here` finds them."


def _platform_findings(image: Mapping[str, str], machine: MachineFacts) -> Iterator[Finding]:
    platform = image.get(label_names.PLATFORM)
    if platform is None:
        yield finding("labels-missing")
    elif platform != machine.platform:
        yield finding(
            "platform-differs", image=platform, machine=machine.name, host=machine.platform
        )


def _engine_findings(machine: MachineFacts, is_pushed: bool | None) -> Iterator[Finding]:
    """Yield a finding for an image that was not pushed: engines of sites fetch theirs.

    Docker may have such an image.
    """
    if is_pushed is False and machine.engine != "docker" and not runs_sifs(machine.engine):
        yield finding("engine-needs-registry", machine=machine.name, engine=_called(machine.engine))


def _called(engine: str) -> str:
    return {"edf": "the Container Engine", "podman-hpc": "Podman-HPC"}.get(
        engine, engine.capitalize()
    )
