"""Finds every conflict between a workflow and a machine before anything is built. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from image_builder.errors import ErrorCode
from image_builder.recipe.demands import ALL, Demand, Nodes
from image_builder.recipe.target_flags import leaves_target
from image_builder.request import mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.request.facts import mpi_facts
from image_builder.request.mpi_gpu import Gpu, Mpi
from image_builder.sources.description import Description
from image_builder.sources.problems import Problem, raise_all
from image_builder.sources.safe_yaml import Path
from image_builder.spack import spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict:
    """Says what a description asks for and the request forbids; `hint` is what to write instead.

    `has_two_sides` False: nothing could meet what is asked for, whatever the request says.
    """

    path: Path
    problem: str
    hint: str
    has_two_sides: bool = True


Rule = Callable[[Demand, str, spec.Node], Conflict | None]
"""Judges one node of a demand; the name is of the package that it is about, or empty."""


def refuse(
    description: Description,
    demands: Iterable[Demand],
    machine: Machine,
    mpi: Mpi | None,
    gpu: Gpu | None,
    rules: Sequence[Rule] = (),
) -> list[str]:
    """Raise `BadDescription` (`CONFLICT`) with each demand that the machine forbids.

    Return the warnings about preferences, which give way. Of alternatives, one that can be met is
    enough. `rules` look at each node on their own.
    """
    found: list[Conflict] = []
    warnings: list[str] = []
    for demand in demands:
        conflicts = [
            _first(demand, nodes, machine, mpi, gpu) or _by_rules(demand, nodes, rules)
            for nodes in demand.alternatives
        ]
        first = conflicts[0] if conflicts and all(conflicts) else None
        if first is None:
            continue
        if demand.is_preference:
            where = f"{description.file}, line {description.line('spack', *demand.path)}"
            warnings.append(f"{where}: {_place(first)} {first.problem}: the request counts.")
        else:
            found.append(first)
    raise_all((_problem(description, one) for one in found), description.file, _CODE)
    return list(dict.fromkeys(warnings))


def compilers_named(body: Mapping[str, Any]) -> list[str]:
    """Return the compilers that `packages: all: compiler` names."""
    everywhere = (body.get("packages") or {}).get(ALL) or {}
    return [str(text) for text in everywhere.get("compiler") or ()]


_CODE = ErrorCode.CONFLICT


def _problem(description: Description, conflict: Conflict) -> Problem:
    return Problem(
        description.line("spack", *conflict.path) or 1,
        f"{_place(conflict)} {conflict.problem}"
        + (": both cannot hold" if conflict.has_two_sides else ""),
        conflict.hint,
    )


def _place(conflict: Conflict) -> str:
    return ": ".join(str(part) for part in conflict.path if isinstance(part, str))


def _first(
    demand: Demand, nodes: Nodes, machine: Machine, mpi: Mpi | None, gpu: Gpu | None
) -> Conflict | None:
    """Return the first conflict of one alternative, or None where it can be met."""
    if mpi is not None and mpi_gpu.is_mpi(demand.package) and demand.package != mpi.name:
        return None  # what is asked of an MPI that will not be there
    target = machine.target.name
    conflict = _targets(demand, nodes, target)
    for node in nodes:
        conflict = conflict or _flags(demand, node, target)
        owned = node if node.name or node.sigil else dataclasses.replace(node, name=demand.package)
        if mpi is not None and not node.is_conditional:
            conflict = conflict or _other_mpi(demand.path, owned, mpi)
        if gpu is not None and not node.is_conditional:
            conflict = conflict or _other_gpu(demand, owned, gpu)
    return conflict


def _by_rules(demand: Demand, nodes: Nodes, rules: Sequence[Rule]) -> Conflict | None:
    owner = demand.package if demand.package != ALL else ""
    conflicts = (
        rule(demand, node.name or (owner if not node.sigil else ""), node)
        for node in nodes
        if not node.is_conditional
        for rule in rules
    )
    return next((conflict for conflict in conflicts if conflict is not None), None)


def _targets(demand: Demand, nodes: Nodes, target: str) -> Conflict | None:
    for asked in spec.targets_of(nodes):
        if not spec.target_allows(asked, target):
            return Conflict(
                path=demand.path,
                problem=f"asks for the target {asked}, the request for {target}",
                hint=f'Remove it, or request "architecture": "{asked}".',
            )
    return None


def _flags(demand: Demand, node: spec.Node, target: str) -> Conflict | None:
    for key, flag in spec.flags_of(node):
        if leaves_target(flag, target):
            return Conflict(
                path=demand.path,
                problem=f"sets {key} to {flag}, the request is for {target}",
                hint="Leave the flag out: Spack itself adds those of the target.",
            )
    return None


def _other_mpi(path: Path, node: spec.Node, mpi: Mpi) -> Conflict | None:
    if not mpi_gpu.is_mpi(node.name):
        return None
    if node.name != mpi.name:
        facts = mpi_facts()["implementations"][node.name]
        return Conflict(
            path=path,
            problem=f"names the MPI {node.name}, the request {mpi.spec}",
            hint=f"Remove {node.name} there, or request "
            f'"mpi": "{facts.get("instead", node.name)}".',
        )
    return _other_version(path, node, mpi.version, mpi.spec)


def _other_gpu(demand: Demand, node: spec.Node, gpu: Gpu) -> Conflict | None:
    if node.name == gpu.name:
        return _other_version(demand.path, node, gpu.version, gpu.spec)
    if demand.package == ALL and node.name == ALL and node.variants.get(gpu.variant) == "false":
        return Conflict(
            path=demand.path,
            problem=f"asks for ~{gpu.variant} everywhere, the request for {gpu.spec}",
            hint="Write it below the packages that are to be without it, or request no GPU.",
        )
    return None


def _other_version(path: Path, node: spec.Node, version: str, requested: str) -> Conflict | None:
    if not spec.disjoint_versions(node.version, version):
        return None
    return Conflict(
        path=path,
        problem=f"names {node.name}@{node.version}, the request {requested}",
        hint="Remove the version there, or request that one.",
    )
