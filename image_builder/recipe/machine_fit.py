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
from image_builder.request.spack_support import lacks_architecture, machine_problems, takes_gpu
from image_builder.spack.compiler_names import packaged_gcc
from image_builder.spack.knowledge import SpackKnowledge
from image_builder.spack.spec import Node, nodes


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
    unnamed = _without_architecture(demands, mpi, gpu, knows) if knows is not None else {}
    asked = mpi is not None and nodes(mpi.spec)[0].variants.get(gpu.variant) == "false"
    own = {mpi.name: (f"~{gpu.variant}",)} if asked and mpi is not None else {}
    allowed, compiler_warnings = _allowed_compilers(target, gpu, image, knows)
    return MachineFit(
        without_gpu=tuple(dict.fromkeys([*refusing, *unnamed, *own])),
        required={
            **dict.fromkeys(refusing, ()),
            **dict.fromkeys(unnamed, (f"~{gpu.variant}",)),
            **own,
            **allowed,
        },
        warnings=(*{**refusing, **unnamed}.values(), *compiler_warnings),
    )


def _refusing(
    demands: Sequence[Demand], mpi: Mpi | None, gpu: Gpu, knows: SpackKnowledge
) -> Iterator[tuple[str, str]]:
    """Yield packages of which no version that is asked for can be built for the GPU, and why."""
    named = [(name, node.version) for name, node in _demanded(demands) if name != ALL]
    named += [(mpi.name, mpi.version)] if mpi is not None else []
    for name, version in named:
        if not name or takes_gpu(name, version, gpu, knows):
            continue
        package = knows.package(name)
        since = package.first_that_takes(gpu.variant) if package is not None else None
        shown = f"{name}@{version}" if version else name
        why = f"it takes +{gpu.variant} from {since} on" if since else f"it takes no +{gpu.variant}"
        yield name, f"{shown} is built without {gpu.called}: {why}."


def _without_architecture(
    demands: Sequence[Demand], mpi: Mpi | None, gpu: Gpu, knows: SpackKnowledge
) -> dict[str, str]:
    """Return the packages that take the GPU for an architecture alone and get none, and why.

    Spack would take one of its own choice. Raises `InvalidRequest` where `+cuda` is demanded.
    """
    demanded = list(_demanded(demands))
    having = {name for name, node in demanded if gpu.arch_variant in node.variants}
    asked = {name for name, node in demanded if node.variants.get(gpu.variant) == "true"}
    names = [name for name, _ in demanded] + ([mpi.name] if mpi is not None else [])
    found: dict[str, str] = {}
    for name in names if ALL not in having else ():
        if name in having or not lacks_architecture(name, gpu, knows):
            continue
        takes = f"takes +{gpu.variant} for an architecture alone"
        if name in asked:
            hint = "write the GPU's, such as a100 or mi250x"
            raise InvalidRequest([FieldProblem("machine.gpu_arch", f"{name} {takes}", hint)])
        found[name] = f"{name} is built without {gpu.called}: it {takes}: name one as gpu_arch."
    return found


def _demanded(demands: Iterable[Demand]) -> Iterator[tuple[str, Node]]:
    """Yield each package, or `all`, with what it has to have."""
    for demand in demands:
        if demand.is_preference or len(demand.alternatives) != 1:
            continue
        for node in demand.alternatives[0]:
            if not node.is_conditional and not (node.sigil and not node.name):
                yield node.name or demand.package, node


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
