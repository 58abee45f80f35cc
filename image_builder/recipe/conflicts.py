"""Finds every conflict between a workflow and a machine before anything is built. Pure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from image_builder.errors import ErrorCode
from image_builder.recipe.demands import ALL, Demand, Nodes
from image_builder.recipe.target_flags import leaves_target
from image_builder.request import cpu_targets, mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.request.facts import mpi_facts
from image_builder.request.mpi_gpu import Gpu, Mpi
from image_builder.sources.description import Description
from image_builder.sources.problems import Problem, raise_all
from image_builder.sources.safe_yaml import Path
from image_builder.sources.spec_places import spec_places
from image_builder.spack import spec
from image_builder.spack.knowledge import SpackKnowledge
from image_builder.spack.version_ranges import overlap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict:
    """Says what a description asks for and the request forbids; `hint` is what to write instead.

    `has_two_sides` False: nothing could meet what is asked for, whatever the request says. `side`
    is what counts where it is a preference only.
    """

    path: Path
    problem: str
    hint: str
    has_two_sides: bool = True
    side: str = "request"


Judge = Callable[[Demand, Nodes], Sequence[Conflict]]
Rule = Callable[[Demand, str, spec.Node], Iterable[Conflict | None]]
"""Judges one node of a demand; the name is of the package that it is about, or empty.

None among the conflicts stands for what can be met.
"""


def refuse(
    description: Description,
    demands: Iterable[Demand],
    machine: Machine,
    mpi: Mpi | None,
    gpu: Gpu | None,
    rules: Sequence[Rule] = (),
    others: Iterable[Conflict] = (),
) -> list[str]:
    """Raise `BadDescription` (`CONFLICT`) with each demand that the machine forbids.

    Return the warnings about preferences, which give way. Of alternatives, one that can be met is
    enough. `rules` look at each node on their own; `others` are conflicts found before.
    """
    warnings: list[str] = []
    judge = functools.partial(_conflicts, machine=machine, mpi=mpi, gpu=gpu, rules=rules)
    found = [*others, *_flags_of_packages(description.spack or {}, machine.target.name)]
    for demand in demands:
        conflicts = [judge(demand, nodes) for nodes in demand.alternatives]
        if not conflicts or not all(conflicts):
            continue
        if demand.is_preference:
            first = conflicts[0][0]
            where = f"{description.file}, line {description.line('spack', *demand.path)}"
            warnings.append(f"{where}: {_place(first)} {first.problem}: the {first.side} counts.")
        elif len(conflicts) == 1:
            found += [_placed(one, demand, judge) for one in conflicts[0]]
        else:
            found.append(conflicts[0][0])
    raise_all((_problem(description, one) for one in found), description.file, _CODE)
    return list(dict.fromkeys(warnings))


def interface_rule(knows: SpackKnowledge | None, mpi: Mpi | None) -> Rule:
    """Return the rule against a version of MPI's interface that the machine's MPI lacks: `^mpi@4`."""

    def judge(demand: Demand, package: str, node: spec.Node) -> list[Conflict | None]:
        if knows is None or mpi is None or package != "mpi" or not node.version:
            return []
        provided = knows.interfaces_of(mpi.name, mpi.version)
        if not provided or any(overlap(node.version, one) for one in provided):
            return []
        shown = " and mpi@".join(dict.fromkeys(provided))
        return [
            Conflict(
                path=demand.path,
                problem=f"asks for mpi@{node.version}, {mpi.spec} provides mpi@{shown}",
                hint="Write a version of MPI's own standard, or leave it out.",
            )
        ]

    return judge


def compilers_named(body: Mapping[str, Any]) -> list[str]:
    """Return the compilers that `packages: all: compiler` names."""
    everywhere = (body.get("packages") or {}).get(ALL) or {}
    return [str(text) for text in everywhere.get("compiler") or ()]


_CODE = ErrorCode.CONFLICT
_FOLLOWED = ("require", "prefer")


def _problem(description: Description, conflict: Conflict) -> Problem:
    return Problem(
        description.line("spack", *conflict.path) or 1,
        f"{_place(conflict)} {conflict.problem}"
        + (": both cannot hold" if conflict.has_two_sides else ""),
        conflict.hint,
    )


def _place(conflict: Conflict) -> str:
    return ": ".join(str(part) for part in conflict.path if isinstance(part, str))


def _placed(conflict: Conflict, demand: Demand, judge: Judge) -> Conflict:
    """Return a conflict at the part of a matrix or definition that brings it."""
    for path, nodes in demand.parts:
        alone = dataclasses.replace(demand, path=path, parts=())
        if any(one.problem == conflict.problem for one in judge(alone, nodes)):
            return dataclasses.replace(conflict, path=path)
    return conflict


def _conflicts(
    demand: Demand,
    nodes: Nodes,
    *,
    machine: Machine,
    mpi: Mpi | None,
    gpu: Gpu | None,
    rules: Sequence[Rule],
) -> list[Conflict]:
    """Return every conflict of one alternative; none where it can be met."""
    if mpi is not None and mpi_gpu.is_mpi(demand.package) and demand.package != mpi.name:
        return []  # what is asked of an MPI that will not be there
    target = machine.target.name
    found = list(_targets(demand, nodes, target))
    for node in nodes:
        found += _flags(demand.path, node, target) if not demand.package else ()
        owned = node if node.name or node.sigil else dataclasses.replace(node, name=demand.package)
        if node.is_conditional:
            continue
        others = [
            _other_mpi(demand.path, owned, mpi) if mpi is not None else None,
            _other_gpu(demand, owned, gpu) if gpu is not None else None,
        ]
        is_another = any(others)  # then whether Spack has that one is of no interest
        found += filter(None, others)
        found += [
            one
            for one in _by_rules(demand, node, rules)
            if one is not None and (one.has_two_sides or not is_another)
        ]
    return list({conflict.problem: conflict for conflict in found[::-1]}.values())[::-1]


def _by_rules(demand: Demand, node: spec.Node, rules: Sequence[Rule]) -> list[Conflict | None]:
    owner = demand.package if demand.package != ALL and not node.sigil else ""
    return [conflict for rule in rules for conflict in rule(demand, node.name or owner, node)]


def _targets(demand: Demand, nodes: Nodes, target: str) -> Iterator[Conflict]:
    for asked in spec.targets_of(nodes):
        if not spec.target_allows(asked, target):
            known = cpu_targets.is_known(asked)
            yield Conflict(
                path=demand.path,
                problem=f"asks for the target {asked}, the request for {target}",
                hint="Remove it" + (f', or request "architecture": "{asked}".' if known else "."),
            )


def _flags(path: Path, node: spec.Node, target: str) -> Iterator[Conflict]:
    for key, flag in spec.flags_of(node):
        if leaves_target(flag, target):
            yield Conflict(
                path=path,
                problem=f"sets {key} to {flag}, the request is for {target}",
                hint="Leave the flag out: Spack itself adds those of the target.",
            )


def _flags_of_packages(body: Mapping[str, Any], target: str) -> Iterator[Conflict]:
    """Yield flags for another CPU below `packages`.

    Spack follows a preference, the first of alternatives and what has a condition wherever it can:
    none of them gives way.
    """
    for path, text, _ in spec_places({"packages": body.get("packages")}):
        if path[2] in _FOLLOWED:
            for node in spec.nodes(text):
                yield from _flags(path, node, target)


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
