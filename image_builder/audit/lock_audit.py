"""Compares what Spack decided with what was asked for.

Pure: it reads a `spack.lock` and nothing else. Externals are exempt where the rule is about how
something was built: they were not built here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from image_builder.request.facts import gpu_facts
from image_builder.request.mpi_gpu import is_mpi
from image_builder.spack import spec
from image_builder.spack import spec as spack_spec
from image_builder.spack.lockfile import Graph, Node


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Holds a row of the verdict's table; `found` is short, and the problems say what is wrong."""

    name: str
    expected: str
    found: str
    ok: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Says one thing that is not as asked for.

    `node` and `hash` are empty when the package is missing.
    """

    check: str
    message: str
    node: str = ""
    hash: str = ""

    def __str__(self) -> str:
        return self.message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Holds what the audit found."""

    checks: tuple[Check, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as a build's record keeps it."""
        return {
            "ok": self.ok,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
        }

    def table(self) -> str:
        """Return the checks as text, a line each, followed by what is wrong."""
        rows = [("check", "expected", "found", "")]
        rows += [
            (check.name, check.expected, check.found, "ok" if check.ok else "WRONG")
            for check in self.checks
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2].ljust(widths[2]), row[3]]
            ).rstrip()
            for row in rows
        ]
        return "\n".join(lines + [f"- {problem}" for problem in self.problems])


def audit(
    lock: Mapping[str, Any],
    *,
    target: str,
    mpi: str | None,
    gpu: str | None,
    gpu_arch: str | None,
    roots: Sequence[str],
    without_gpu: Sequence[str] = (),
) -> Verdict:
    """Return whether what `lock` says will be, or was, installed is what was asked for.

    `target` is archspec's name, `mpi` and `gpu` are Spack specs, `gpu_arch` is `80`, `sm_80` or
    `gfx90a`, and `roots` are the specs that must be there. Packages in `without_gpu` need not be
    built for the GPU, and neither does one for which a root says so (`hwloc~cuda`). Raises
    `UnreadableLock`.
    """
    graph = Graph(lock)
    findings = [_target(graph, target)]
    if mpi:
        findings.append(_one_mpi(graph, _Wanted.of(mpi)))
    if gpu:
        runtime = _Wanted.of(_package_of_runtime(gpu))
        findings.append(_one_runtime(graph, runtime))
        findings += _gpu_variants(
            graph, runtime.name, gpu_arch, frozenset(without_gpu) | _refusing_gpu(graph, roots)
        )
    findings.append(_roots(graph, roots))
    return Verdict(
        checks=tuple(check for check, _ in findings),
        problems=tuple(problem for _, problems in findings for problem in problems),
    )


_Finding = tuple[Check, list[Problem]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wanted:
    """Holds a spec that was asked for: how it was written, and its first node."""

    text: str
    node: spec.Node

    @classmethod
    def of(cls, text: str, release: tuple[int, ...] | None = None) -> _Wanted:
        return cls(text=text, node=spec.nodes(text, release)[0])

    @property
    def name(self) -> str:
        return self.node.name

    def unmet_by(self, node: Node) -> str:
        """Return what of this a node of that name does not have; empty when it has everything."""
        return spack_spec.unmet(self.node, node.version, node.parameters)


def _problem(check: str, node: Node, message: str) -> Problem:
    return Problem(check=check, message=message, node=str(node), hash=node.hash)


def _target(graph: Graph, target: str) -> _Finding:
    built = graph.built()
    problems = [
        _problem("target", node, f"{node} is built for {node.target}, not for {target}")
        for node in built
        if node.target != target
    ]
    matching = f"{len(built) - len(problems)} of {len(built)} built packages"
    return Check(name="target", expected=target, found=matching, ok=not problems), problems


def _one_mpi(graph: Graph, wanted: _Wanted) -> _Finding:
    """Check that the wanted MPI is a root, the only one, and behind every edge that needs one."""
    present = _mpis(graph)
    problems = _provider_problems(graph, wanted)
    problems += [
        _problem("mpi", node, f"{node} is a second MPI beside {wanted.text}")
        for node in present
        if node.name != wanted.name
    ]
    problems += _runtime_problems(graph, wanted, "mpi")
    return Check(name="mpi", expected=wanted.text, found=_names(present), ok=not problems), problems


def _mpis(graph: Graph) -> list[Node]:
    """Return every MPI: packages known as one, and providers of an `mpi` edge."""
    providing = {provider.hash for _, edge, provider in graph.edges() if "mpi" in edge.virtuals}
    return [node for node in graph if is_mpi(node.name) or node.hash in providing]


def _provider_problems(graph: Graph, wanted: _Wanted) -> list[Problem]:
    """Return the nodes whose MPI is another one.

    Without virtuals in the lockfile, an edge to a package known as an MPI is taken.
    """
    return [
        _problem("mpi", user, f"{user} gets its MPI from {provider}, not from {wanted.text}")
        for user, edge, provider in graph.edges()
        if provider.name != wanted.name
        and ("mpi" in edge.virtuals or (not edge.virtuals and is_mpi(provider.name)))
    ]


def _one_runtime(graph: Graph, wanted: _Wanted) -> _Finding:
    present = [
        node
        for runtime in gpu_facts()["runtimes"].values()
        for node in graph.named(runtime["package"])
    ]
    problems = [
        _problem("gpu", node, f"{node} is a second GPU runtime beside {wanted.text}")
        for node in present
        if node.name != wanted.name
    ]
    problems += _runtime_problems(graph, wanted, "gpu")
    return Check(name="gpu", expected=wanted.text, found=_names(present), ok=not problems), problems


def _runtime_problems(graph: Graph, wanted: _Wanted, check: str) -> list[Problem]:
    """Return what is wrong with the wanted package's nodes.

    There are none or several, none is a root, or one has another version or variant.
    """
    nodes = graph.named(wanted.name)
    if not nodes:
        return [
            Problem(
                check=check, message=f"{wanted.text} was asked for, and there is no {wanted.name}"
            )
        ]
    problems = [
        _problem(check, node, f"{node} is a second {wanted.name} beside {nodes[0]}")
        for node in nodes[1:]
    ]
    problems += [
        _problem(check, node, f"{node} does not satisfy {wanted.text}: {unmet}")
        for node in nodes
        if (unmet := wanted.unmet_by(node))
    ]
    if not any(node.name == wanted.name for node in graph.root_nodes()):
        problems.append(
            _problem(
                check,
                nodes[0],
                f"{nodes[0]} is only a dependency; {wanted.text} must be a root, "
                "to be there when nothing needs it",
            )
        )
    return problems


def _package_of_runtime(gpu: str) -> str:
    """Return Spack's name of a GPU runtime: `rocm@6` is `hip@6`."""
    name = spec.nodes(gpu)[0].name
    return str(gpu_facts()["aliases"].get(name, name)) + gpu[len(name) :]


def _gpu_variants(
    graph: Graph, runtime: str, gpu_arch: str | None, exempt: frozenset[str]
) -> list[_Finding]:
    """Check that built packages that can use the GPU do, and for its architecture."""
    facts = next(
        (facts for facts in gpu_facts()["runtimes"].values() if facts["package"] == runtime), None
    )
    if facts is None:
        return []
    able = [
        node
        for node in graph.built()
        if node.name not in exempt and isinstance(node.parameters.get(facts["variant"]), bool)
    ]
    using = [node for node in able if node.parameters[facts["variant"]]]
    problems = [
        _problem("gpu packages", node, f"{node} is built ~{facts['variant']}")
        for node in able
        if node not in using
    ]
    packages = Check(
        name="gpu packages",
        expected=f"+{facts['variant']}",
        ok=not problems,
        found=f"{len(using)} of {len(able)} packages that have the variant",
    )
    return [
        (packages, problems),
        *([_gpu_arch(using, facts["arch_variant"], gpu_arch)] if gpu_arch else []),
    ]


def _gpu_arch(using: Sequence[Node], variant: str, gpu_arch: str) -> _Finding:
    wanted = gpu_arch.lower().removeprefix("sm_").removeprefix("compute_")
    able = [node for node in using if variant in node.parameters]
    problems = [
        _problem(
            "gpu arch", node, f"{node} is built for {_arches(node, variant)}, not for {wanted}"
        )
        for node in able
        if not _has_arch(node, variant, wanted)
    ]
    return Check(
        name="gpu arch",
        expected=f"{variant}={wanted}",
        ok=not problems,
        found=f"{len(able) - len(problems)} of {len(able)} packages that have the variant",
    ), problems


def _has_arch(node: Node, arch_variant: str, wanted: str) -> bool:
    """Return whether a node is built for an architecture; for `gfx90a`, `gfx90a:xnack-` will do."""
    arches = spack_spec.values(node.parameters[arch_variant])
    return wanted in arches | {arch.partition(":")[0] for arch in arches}


def _arches(node: Node, arch_variant: str) -> str:
    return f"{arch_variant}={','.join(sorted(spack_spec.values(node.parameters[arch_variant]))) or 'none'}"


def _refusing_gpu(graph: Graph, roots: Sequence[str]) -> frozenset[str]:
    """Return packages for which a root itself says that they are not to use the GPU.

    It says so as `hwloc~cuda` or `py-x ^hwloc~cuda`.
    """
    variants = {facts["variant"] for facts in gpu_facts()["runtimes"].values()}
    return frozenset(
        node.name
        for root in roots
        for node in spec.nodes(root, graph.release)
        if any(node.variants.get(variant) == "false" for variant in variants)
    )


def _roots(graph: Graph, roots: Sequence[str]) -> _Finding:
    """Check that every spec that was asked for is a root of the lockfile, as it was asked for."""
    problems = [problem for text in dict.fromkeys(roots) if (problem := _root_problem(graph, text))]
    wanted = len(dict.fromkeys(roots))
    check = Check(
        name="specs",
        expected=f"{wanted} requested",
        found=f"{wanted - len(problems)} present",
        ok=not problems,
    )
    return check, problems


def _root_problem(graph: Graph, text: str) -> Problem | None:
    wanted = _Wanted.of(text, graph.release)
    nodes = [node for node in graph.root_nodes() if node.name == wanted.name]
    if any(not wanted.unmet_by(node) for node in nodes):
        return None
    if nodes:
        return _problem("specs", nodes[0], f"{nodes[0]} is not {text}: {wanted.unmet_by(nodes[0])}")
    if any(asked.split() == text.split() for _, asked in graph.user_roots):
        return (
            None  # a virtual package, or a spec without a name: Spack itself says which node it is
        )
    return Problem(check="specs", message=f"{text} was asked for and is no root of the environment")


def clashing_in_view(
    lock: Mapping[str, Any], *, types: Collection[str] = ("link", "run")
) -> list[tuple[Node, Node]]:
    """Return pairs of packages of one name that a view would link, as it holds one of a name.

    `types` are the dependencies that it follows. Of runtimes (`gcc-runtime`) Spack takes one by
    itself.
    """
    graph = Graph(lock)
    named: dict[str, dict[str, Node]] = {}
    waiting = list(graph.root_nodes())
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.hash in seen:
            continue
        seen.add(node.hash)
        named.setdefault(node.name, {})[node.hash] = node
        waiting += [
            graph[edge.hash] for edge in node.dependencies if edge.types.intersection(types)
        ]
    several = [list(nodes.values())[:2] for nodes in named.values() if len(nodes) > 1]
    return [(one, other) for one, other in several if not one.name.endswith("-runtime")]


def _names(nodes: Sequence[Node]) -> str:
    return (
        ", ".join(
            f"{node.name}@{node.version}" + (" (external)" if node.external else "")
            for node in nodes
        )
        or "none"
    )
