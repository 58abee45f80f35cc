"""Finds what the machine's GPU, compilers and MPI ask of an environment. Pure.

What they ask depends on what the base image's Spack knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.recipe.demands import ALL, Demand
from image_builder.recipe.system_conflicts import ImageSystem
from image_builder.request.build_request import Machine
from image_builder.request.cuda_compilers import ALLOW, compiler_gap
from image_builder.request.mpi_gpu import Gpu, Mpi, gpu_problem
from image_builder.request.spack_support import machine_problems, takes_gpu
from image_builder.spack.compiler_names import packaged_gcc
from image_builder.spack.knowledge import SpackKnowledge
from image_builder.spack.spec import nodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineFit:
    """Holds what is added so that Spack can satisfy the machine, and the warnings about it.

    `without_gpu` names packages that the GPU's variant is not required of; `required` has more
    requirements of packages.
    """

    without_gpu: tuple[str, ...] = ()
    required: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def require_machine(
    machine: Machine,
    mpi: Mpi | None,
    gpu: Gpu | None,
    knows: SpackKnowledge | None,
    packages: Iterable[Mapping[str, Any]],
) -> None:
    """Raise `InvalidRequest` for what of a machine the base image's Spack cannot build.

    `packages` are the `packages` sections of the site and the description, whose externals are
    not judged.
    """
    externals = {
        name for section in packages for name, fields in section.items() if _externals(fields)
    }
    problems = [found] if gpu is not None and (found := gpu_problem(gpu)) else []
    problems += machine_problems(machine.target, mpi, gpu, knows, externals)
    if problems:
        raise InvalidRequest(list({problem.field: problem for problem in problems[::-1]}.values()))


def machine_fit(
    demands: Sequence[Demand],
    target: str,
    mpi: Mpi | None,
    gpu: Gpu | None,
    image: ImageSystem,
    knows: SpackKnowledge | None,
) -> MachineFit:
    """Return what an environment needs so that the machine's GPU goes with everything else."""
    if gpu is None:
        return MachineFit()
    refusing = dict(_refusing(demands, mpi, gpu, knows)) if knows is not None else {}
    _require_architecture(refusing, demands, gpu)
    asked = mpi is not None and nodes(mpi.spec)[0].variants.get(gpu.variant) == "false"
    own = {mpi.name: (f"~{gpu.variant}",)} if asked and mpi is not None else {}
    allowed, compiler_warnings = _allowed_compilers(target, gpu, image, knows)
    return MachineFit(
        without_gpu=tuple(dict.fromkeys([*refusing, *own])),
        required={
            **{name: _without(name, gpu, knows) for name in refusing},
            **own,
            **allowed,
        },
        warnings=(*refusing.values(), *compiler_warnings),
    )


def _require_architecture(refusing: Iterable[str], demands: Sequence[Demand], gpu: Gpu) -> None:
    """Raise `InvalidRequest` for `+cuda` of a package that takes it for an architecture alone."""
    if gpu.arch is not None:
        return
    asked = {
        node.name or demand.package
        for demand in demands
        for node in demand.alternatives[0]
        if len(demand.alternatives) == 1 and node.variants.get(gpu.variant) == "true"
    }
    if needing := sorted(asked.intersection(refusing)):
        problem = f"{needing[0]} takes +{gpu.variant} for an architecture alone"
        raise InvalidRequest(
            [FieldProblem("machine.gpu_arch", problem, "write the GPU's, such as a100 or mi250x")]
        )


def _refusing(
    demands: Sequence[Demand], mpi: Mpi | None, gpu: Gpu, knows: SpackKnowledge
) -> Iterator[tuple[str, str]]:
    """Yield packages of which no version that is asked for can be built for the GPU, and why."""
    named = [*_named(demands), *([(mpi.name, mpi.version)] if mpi is not None else [])]
    with_architecture = set(_asking_for(demands, gpu.arch_variant))
    for name, version in named:
        if not name or takes_gpu(name, version, gpu, knows) or name in with_architecture:
            continue
        package = knows.package(name)
        if package is not None and package.takes(gpu.variant, version):
            why = f"it takes +{gpu.variant} for an architecture alone: name one as gpu_arch"
            yield name, f"{name} is built without {gpu.called}: {why}."
            continue
        since = package.first_that_takes(gpu.variant) if package is not None else None
        shown = f"{name}@{version}" if version else name
        why = f"it takes +{gpu.variant} from {since} on" if since else f"it takes no +{gpu.variant}"
        yield name, f"{shown} is built without {gpu.called}: {why}."


def _without(name: str, gpu: Gpu, knows: SpackKnowledge | None) -> tuple[str, ...]:
    """Return what keeps Spack from an architecture of its own choice; conflicts keep it elsewhere."""
    package = knows.package(name) if knows is not None else None
    needs = package is not None and gpu.variant in package.needs_architecture
    return (f"~{gpu.variant}",) if needs and gpu.arch is None else ()


def _asking_for(demands: Iterable[Demand], variant: str) -> Iterator[str]:
    """Yield each package that a variant is demanded of."""
    for demand in demands:
        for node in demand.alternatives[0] if len(demand.alternatives) == 1 else ():
            if variant in node.variants:
                yield node.name or demand.package


def _named(demands: Iterable[Demand]) -> Iterator[tuple[str, str]]:
    """Yield each package with the version that it has to have."""
    for demand in demands:
        if demand.is_preference or len(demand.alternatives) != 1 or demand.package == ALL:
            continue
        for node in demand.alternatives[0]:
            if not node.is_conditional and not (node.sigil and not node.name):
                yield node.name or demand.package, node.version


def _allowed_compilers(
    target: str, gpu: Gpu, image: ImageSystem, knows: SpackKnowledge | None
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return what lets CUDA go with the image's compilers, and the warning that says so."""
    gap = compiler_gap(gpu, image.compilers, target, knows) if knows is not None else None
    if gap is None:
        return {}, []
    problem = gap.explained(image.shown, packaged_gcc(image.system))
    if not gap.can_be_allowed:
        raise InvalidRequest([FieldProblem("machine.gpu", problem, "write another version")])
    warning = f"{problem} It is built with +{ALLOW}: what nvcc compiles may fail."
    return {gpu.name: (f"+{ALLOW}",)}, [warning]


def _externals(fields: Any) -> bool:
    return isinstance(fields, Mapping) and bool(fields.get("externals"))
