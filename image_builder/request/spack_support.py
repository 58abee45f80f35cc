"""Checks what the Spack of a base image can do for a machine. Pure.

It judges what `SpackKnowledge` holds, and nothing that a site or a workflow has as an external.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import archspec.cpu

from image_builder.errors import FieldProblem
from image_builder.request import gpu_arch
from image_builder.request.cpu_targets import Target, nearest
from image_builder.request.facts import mpi_facts
from image_builder.request.mpi_gpu import Gpu, Mpi
from image_builder.spack.knowledge import SpackKnowledge, newest_of
from image_builder.spack.spec import NOT_VARIANTS, nodes
from image_builder.spack.version_ranges import overlap


def machine_problems(
    target: Target,
    mpi: Mpi | None,
    gpu: Gpu | None,
    knows: SpackKnowledge | None,
    externals: Collection[str] = (),
) -> list[FieldProblem]:
    """Return what of a machine the base image's Spack cannot build.

    `externals` are the packages that are taken from the system. Without `knows` nothing is judged.
    """
    if knows is None:
        return []
    problems: list[FieldProblem] = []
    if knows.targets and target.name not in knows.targets:
        problems.append(_unknown_target(target, knows))
    if mpi is not None and mpi.name not in externals:
        problems += _mpi_problems(mpi, knows)
    if gpu is not None and gpu.name not in externals:
        problems += _package_problems("machine.gpu", gpu.name, gpu.spec, gpu.version, knows)
    if gpu is not None and not problems:
        problems += _architecture_problems(gpu, knows)
    return problems


def takes_gpu(name: str, version: str, gpu: Gpu, knows: SpackKnowledge) -> bool:
    """Return whether a package can be built for the GPU, or has no such variant.

    `version` is a range, of which one version is enough.
    """
    package = knows.package(name)
    if package is None or gpu.variant not in package.variants or not package.matching(version):
        return True
    return package.takes(gpu.variant, version)


def lacks_architecture(name: str, gpu: Gpu, knows: SpackKnowledge) -> bool:
    """Return whether a package takes the GPU for an architecture alone, and the request has none."""
    package = knows.package(name)
    return gpu.arch is None and package is not None and gpu.variant in package.needs_architecture


def _unknown_target(target: Target, knows: SpackKnowledge) -> FieldProblem:
    cpu = archspec.cpu.TARGETS[target.name]
    older = [ancestor for ancestor in cpu.ancestors if ancestor.name in knows.targets]
    best = max(older, key=lambda one: (len(one.ancestors), len(one.features)), default=cpu.family)
    return FieldProblem(
        "machine.architecture",
        f"Spack {knows.release} does not know {target.name}",
        f"write {best.name}, the nearest that it knows, or choose a base image with a newer Spack",
    )


def _mpi_problems(mpi: Mpi, knows: SpackKnowledge) -> list[FieldProblem]:
    facts = mpi_facts()["implementations"][mpi.name]
    if knows.mpis.get(mpi.name) in ("external", "platform"):
        problem = f"{mpi.name} exists as an external only: Spack cannot build it"
        hint = f"write {facts.get('instead') or mpi.family}, the nearest that can be built"
        return [FieldProblem("machine.mpi", problem, hint)]
    return _package_problems("machine.mpi", mpi.name, mpi.spec, mpi.version, knows)


def _package_problems(
    field: str, name: str, spec: str, version: str, knows: SpackKnowledge
) -> list[FieldProblem]:
    package = knows.package(name)
    if knows.is_unknown(name):
        built = [known for known, why in knows.mpis.items() if not why]
        close = mpi_facts()["implementations"].get(name, {}).get("instead") or "openmpi"
        hint = f"write {close if close.partition('@')[0] in built else 'openmpi'}"
        return [FieldProblem(field, f"Spack {knows.release} has no {name}", hint)]
    if package is None:
        return []
    problems = list(_unknown_variants(field, spec, package.variants))
    if _is_judged(version) and not package.matching(version):
        newest = newest_of(package.versions)
        problem = f"Spack {knows.release} has no {name}@{version}"
        hint = f"write {name}@{newest}, the newest that it has, or {name}" if newest else name
        numbers = re.match(r"v?(\d+(?:\.\d+)*)(?!.*[\d:,])", version)
        if numbers and numbers[1] != version and package.matching(numbers[1]):
            hint = f"write {name}@{numbers[1]}"  # `v4`, `4.x`
        problems.append(FieldProblem(field, problem, hint))
    return problems


def _is_judged(version: str) -> bool:
    """Return whether a package has to list this version: not a commit, nor an exact one."""
    return bool(version) and not version.startswith(("git.", "=")) and len(version) < 40


def _unknown_variants(field: str, spec: str, known: Collection[str]) -> Iterator[FieldProblem]:
    node = nodes(spec)[0]
    for name in node.variants:
        if name not in known and name not in NOT_VARIANTS:
            close = nearest(name, known)
            hint = f"write {' or '.join(close)}" if close else "leave it out"
            yield FieldProblem(field, f"{node.name} has no variant {name}", hint)


def _architecture_problems(gpu: Gpu, knows: SpackKnowledge) -> list[FieldProblem]:
    if gpu.arch is None:
        return []
    known = sorted(knows.architectures(gpu.arch_variant))
    if known and gpu.arch not in known:
        problem = f"Spack {knows.release} does not know {gpu_arch.shown(gpu.arch)}"
        newest = gpu_arch.shown(max(known, key=lambda name: (len(name.rstrip("af")), name)))
        hint = f"choose a base image with a newer Spack: this one knows up to {newest}"
        return [FieldProblem("machine.gpu_arch", problem, hint)]
    if gpu.arch_variant != "cuda_arch":
        return []
    needed = dict(knows.cuda_archs).get(gpu.arch, "")
    package = knows.package(gpu.name)
    fitting = [
        version
        for version in (package.matching(gpu.version) if package else ())
        if overlap(needed, version)
    ]
    if fitting or package is None:
        return []
    why = gpu_arch.version_problem(gpu.arch, needed, gpu.version, gpu.called)
    return [
        FieldProblem(
            "machine.gpu",
            f"{why or f'no {gpu.spec} makes code for {gpu_arch.shown(gpu.arch)}'} "
            f"in Spack {knows.release}",
            f"write {gpu.name}@{gpu_arch.nearest_version(needed, gpu.version)}",
        )
    ]
