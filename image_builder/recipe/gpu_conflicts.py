"""Finds conflicts between a workflow and the machine's GPU. Pure."""

from __future__ import annotations

from image_builder.recipe.conflicts import Conflict, Rule
from image_builder.recipe.demands import Demand
from image_builder.request.facts import gpu_facts
from image_builder.request.mpi_gpu import Gpu
from image_builder.spack.spec import Node
from image_builder.spack.version_ranges import overlap

_NO_ARCHITECTURE = frozenset({"", "none", "*"})


def gpu_rule(gpu: Gpu | None) -> Rule:
    """Return the rule against a GPU runtime, architecture or version other than the machine's."""

    def judge(demand: Demand, package: str, node: Node) -> list[Conflict | None]:
        if gpu is None:
            return []
        return [
            _other_runtime(demand, node, gpu),
            _other_architecture(demand, node, gpu),
            _other_version(demand, package, node, gpu),
        ]

    return judge


def _other_runtime(demand: Demand, node: Node, gpu: Gpu) -> Conflict | None:
    for name, facts in gpu_facts()["runtimes"].items():
        if facts["package"] == gpu.name:
            continue
        asked = node.variants.get(facts["variant"], "").lower() == "true"
        architecture = node.variants.get(facts["arch_variant"], "").lower()
        if asked or architecture not in _NO_ARCHITECTURE:
            word = f"+{facts['variant']}" if asked else f"{facts['arch_variant']}={architecture}"
            return Conflict(
                path=demand.path,
                problem=f"asks for {word}, the machine has {gpu.called}",
                hint=f'Remove it, or request "gpu": "{"rocm" if name == "hip" else name}".',
            )
    return None


def _other_architecture(demand: Demand, node: Node, gpu: Gpu) -> Conflict | None:
    asked = node.variants.get(gpu.arch_variant)
    if asked is None or gpu.arch is None or asked == "*":
        return None
    values = asked.split(",")
    if gpu.arch in values:
        return None
    own = [value for value in values if value not in _NO_ARCHITECTURE]
    also = f', or request "gpu_arch": "{own[0]}"' if own else ""
    return Conflict(
        path=demand.path,
        problem=f"asks for {gpu.arch_variant}={asked}, the request for {gpu.arch}",
        hint=f"Remove it{also}.",
    )


def _other_version(demand: Demand, package: str, node: Node, gpu: Gpu) -> Conflict | None:
    if package != gpu.name or overlap(node.version, gpu.version):
        return None
    return Conflict(
        path=demand.path,
        problem=f"names {package}@{node.version}, the request {gpu.spec}",
        hint="Remove the version there, or request that one.",
    )
