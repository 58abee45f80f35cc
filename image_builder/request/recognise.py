"""Recognises a machine from collected facts: its description, and those most like it. Pure.

The description is for requests and checks; the machines most like it are of the catalogue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from image_builder.request import cpu_targets
from image_builder.request.collected_facts import CollectedFacts
from image_builder.request.cpu_detection import detected_target
from image_builder.request.facts import gpu_facts, mpi_facts
from image_builder.request.machines import MAX_FACT, MachineEntry

ENGINES = ("singularity", "apptainer", "podman-hpc", "shifter", "sarus", "docker")
"""The engines that `cic_cli here` looks for; the first that is installed is used."""
_NEAREST = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Names a fact in which a machine of the catalogue differs: `here` and `there`."""

    fact: str
    here: str | None
    there: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likeness:
    """Names a machine of the catalogue, and what is different there."""

    name: str
    title: str
    differences: tuple[Difference, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recognised:
    """Describes a machine for requests and for checks, with the machines most like it.

    `machine` is what a request takes, `facts` what a check takes; `nearest` are machines of the
    catalogue, the likest first; `notes` say what was not found and what to do about it.
    """

    machine: Mapping[str, str]
    facts: Mapping[str, str]
    nearest: tuple[Likeness, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["notes"] = list(self.notes)
        found["nearest"] = [
            {**one, "differences": list(one["differences"])} for one in found["nearest"]
        ]
        return found


def recognise(collected: CollectedFacts, machines: Mapping[str, MachineEntry]) -> Recognised:
    """Return the machine that these facts describe."""
    facts = {key: value for key, value in _facts(collected) if value}
    engine = "singularity" if facts.get("engine", ENGINES[0]) in ENGINES[:2] else "docker"
    machine = {
        key: facts[key] for key in ("platform", "architecture", "gpu", "gpu_arch") if key in facts
    } | {"container_engine": engine}
    if "mpi" in facts:
        machine["mpi"] = _to_build(facts["mpi"])
    return Recognised(
        machine=machine,
        facts=facts,
        nearest=_nearest(facts, machines),
        notes=tuple(_notes(collected)),
    )


def _facts(collected: CollectedFacts) -> Iterator[tuple[str, str | None]]:
    cpu = collected.cpu.model_dump(exclude_none=True)
    yield "platform", cpu_targets.platform_of_family(collected.machine)
    yield "architecture", detected_target(collected.machine, cpu)
    yield "mpi", _mpi(collected)
    yield "pmi", ",".join(name for name in collected.pmi if name != "none")
    yield "kernel", collected.kernel
    yield "glibc", collected.glibc
    yield "pmix", collected.pmix or _pmix(collected.pmi)
    yield "squashfs", _few(collected.squashfs)
    yield "libfabric", _few(collected.libfabric)
    yield "ucx", _few(collected.ucx)
    found = {engine.partition(" ")[0] for engine in collected.engines}
    yield "engine", next((engine for engine in ENGINES if engine in found), None)
    gpu = collected.gpu
    if gpu is not None:
        runtime = "cuda" if gpu.vendor == "nvidia" else "hip"
        yield "gpu", f"{runtime}@{_minor(gpu.runtime)}" if gpu.runtime else runtime
        yield "gpu_arch", gpu.architecture and gpu.architecture.replace(".", "")
        yield "driver", gpu.driver if gpu.vendor == "nvidia" else None


def _pmix(pmi: Iterable[str]) -> str | None:
    """Return the first number of the newest PMIx that Slurm has a plug-in for: of pmix_v5, 5."""
    found = [name.partition("_v")[2] for name in pmi if name.startswith("pmix_v")]
    return max(filter(str.isdigit, found), key=int, default=None)


def _few(names: Iterable[str]) -> str:
    """Return a list as one fact, as far as a fact is long."""
    text = ",".join(names)
    return text if len(text) <= MAX_FACT else text[:MAX_FACT].rpartition(",")[0]


def _mpi(collected: CollectedFacts) -> str | None:
    """Return the first MPI with a known name; `cic_cli here` puts the site's own first."""
    known = mpi_facts()["implementations"]
    for found in collected.mpi:
        name, _, version = found.partition(" ")
        if name in known:
            return f"{name}@{_minor(version)}"
    return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _to_build(mpi: str) -> str:
    """Return what images for an MPI are built with: its kin, if Spack does not build it."""
    name = mpi.partition("@")[0]
    facts = mpi_facts()["implementations"][name]
    return str(facts.get("instead", facts["family"])) if facts.get("vendor") else mpi


def _nearest(
    facts: Mapping[str, str], machines: Mapping[str, MachineEntry]
) -> tuple[Likeness, ...]:
    """Return the machines of the same platform, the likest first: CPU and GPU weigh most."""
    found = [
        Likeness(name=name, title=entry.title, differences=tuple(_differences(facts, entry)))
        for name, entry in machines.items()
        if entry.platform == facts["platform"]
    ]
    return tuple(sorted(found, key=_distance)[:_NEAREST])


def _distance(one: Likeness) -> tuple[int, str]:
    return sum(map(_weight, one.differences)), one.name


def _weight(difference: Difference) -> int:
    """Return how much a difference counts.

    A GPU that is not seen may be on the compute nodes alone; one that is seen is there.
    """
    if difference.fact == "gpu_arch" and difference.here is None:
        return 3
    return {"architecture": 8, "gpu_arch": 6, "mpi": 2, "engine": 1}[difference.fact]


def _differences(facts: Mapping[str, str], entry: MachineEntry) -> Iterator[Difference]:
    theirs = {
        "architecture": cpu_targets.canonical_name((entry.architecture or "").lower()) or None,
        "gpu_arch": _gpu_arch(entry.gpu_arch),
        "mpi": entry.site_mpi or entry.mpi,
        "engine": entry.site_engine or entry.container_engine,
    }
    for fact, there in theirs.items():
        here = facts.get(fact)
        if _same(fact, here, there):
            continue
        yield Difference(fact=fact, here=here, there=there)


def _same(fact: str, here: str | None, there: str | None) -> bool:
    """Return whether two facts are the same, as far as they are known.

    An MPI is the same by its name and major release, and one that is not known differs from none.
    """
    if fact == "mpi" and here and there:
        return here.split(".")[0] == there.split(".")[0] or here == there.split("@")[0]
    if fact == "engine" and here in ENGINES[:2] and there in ENGINES[:2]:
        return True
    return here == there or (fact in ("mpi", "engine") and (here is None or there is None))


def _gpu_arch(name: str | None) -> str | None:
    if name is None:
        return None
    return str(gpu_facts()["products"].get(name.lower(), name.lower()))


def _notes(collected: CollectedFacts) -> Iterator[str]:
    if not collected.mpi:
        yield "No MPI was found: load the site's module for it and run `cic_cli here` again."
    if collected.slurm and not collected.pmi:
        yield "Slurm did not say what `srun --mpi=` takes: `srun --mpi=list` prints it."
    if not collected.slurm:
        yield "No Slurm was found: job scripts are for `sbatch`."
    if collected.gpu is None:
        yield "No GPU was found: run `cic_cli here` on a compute node if those have one."
    elif collected.gpu.runtime is None or collected.gpu.architecture is None:
        yield "The GPU's driver did not say all: run `cic_cli here` on a compute node."
    if not collected.engines:
        yield "No container engine was found: load the site's module for it and run `cic_cli here` again."
