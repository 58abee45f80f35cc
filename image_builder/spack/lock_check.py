"""Checks a `spack.lock` from elsewhere before Spack reads it: whether its parts agree. Pure.

Whether its hashes are those of its nodes is for Spack itself to say (`recipes/1/relock.py`).
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.spack.lockfile import Graph, Node, UnreadableLock

VERSIONS = (4, 5, 6, 7)
"""The versions of lockfiles that Spack 0.19 to 1.2 write."""
MAX_NODES, MAX_ROOTS, MAX_TEXT, MAX_PROBLEMS = 5000, 1000, 2000, 20
_HASH = re.compile(r"[a-z2-7]{32}\Z")
_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,199}\Z")
_VERSION = re.compile(r"[A-Za-z0-9_.=@:+/-]{1,200}\Z")
_KEYS = frozenset({"_meta", "spack", "roots", "concrete_specs", "include_concrete"})


def problems(lock: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a lockfile: its form, and parts of it that do not agree."""
    found: list[str] = []
    for problem in _problems(lock):
        found.append(problem)
        if len(found) == MAX_PROBLEMS:
            break
    return found


def _problems(lock: Mapping[str, Any]) -> Iterator[str]:
    meta, roots, nodes = (lock.get(key) for key in ("_meta", "roots", "concrete_specs"))
    version = meta.get("lockfile-version") if isinstance(meta, Mapping) else None
    if not isinstance(meta, Mapping) or meta.get("file-type") != "spack-lockfile":
        yield "it is no spack.lock: its _meta does not say spack-lockfile"
        return
    if version not in VERSIONS:
        known = f"{VERSIONS[0]} to {VERSIONS[-1]}"
        yield f"its version is {_shown(version)}, and {known} are known"
        return
    if unknown := sorted(set(lock) - _KEYS):
        yield f"its part {_shown(unknown[0])} is not known"
    if lock.get("include_concrete"):
        yield "it includes the lockfiles of other environments"
    if not isinstance(roots, list) or not 0 < len(roots) <= MAX_ROOTS:
        yield f"roots is no list of 1 to {MAX_ROOTS} specs"
        return
    if not isinstance(nodes, Mapping) or not 0 < len(nodes) <= MAX_NODES:
        yield f"concrete_specs has no 1 to {MAX_NODES} nodes"
        return
    whole = True
    for key, node in nodes.items():
        for problem in _node_problems(str(key), node, nodes):
            whole = False
            yield problem
    for root in roots:
        for problem in _root_problems(root, nodes):
            whole = False
            yield problem
    if whole:
        yield from _graph_problems(lock, nodes)


def _node_problems(key: str, node: Any, nodes: Mapping[str, Any]) -> Iterator[str]:
    if not _HASH.match(key):
        yield f"{_shown(key)} is no hash of a node"
        return
    if not isinstance(node, Mapping):
        yield f"node {key} is no object"
        return
    name = node.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        yield f"node {key} has no package's name"
        return
    where = f"{name}/{key[:7]}"
    if node.get("hash", key) != key:
        yield f"{where} says that its hash is {_shown(node['hash'])}"
    if not isinstance(node.get("version"), str) or not _VERSION.match(node["version"]):
        yield f"{where} has no version"
    parameters = node.get("parameters", {})
    if not isinstance(parameters, Mapping):
        yield f"the parameters of {where} are no object"
    elif "dev_path" in parameters:
        yield f"{where} is built from a folder"
    edges = node.get("dependencies", [])
    if not isinstance(edges, list):
        yield f"the dependencies of {where} are no list"
        return
    for edge in edges:
        yield from _edge_problems(where, edge, nodes)


def _edge_problems(where: str, edge: Any, nodes: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(edge, Mapping) or not isinstance(edge.get("hash"), str):
        yield f"a dependency of {where} has no hash"
        return
    needed = nodes.get(edge["hash"])
    if not isinstance(needed, Mapping):
        yield f"{where} needs {_shown(edge.get('name'))}/{_shown(edge['hash'])}, which is not there"
    elif edge.get("name") != needed.get("name"):
        yield f"{where} needs {_shown(edge.get('name'))}, and that hash is {_shown(needed.get('name'))}"


def _root_problems(root: Any, nodes: Mapping[str, Any]) -> Iterator[str]:
    spec = root.get("spec") if isinstance(root, Mapping) else None
    if not isinstance(spec, str) or len(spec) > MAX_TEXT:
        yield "a root has no spec"
    elif root.get("hash") not in nodes:
        yield f"the root {_shown(spec)} is of a node which is not there"


def _graph_problems(lock: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a lockfile whose every node may be read by itself."""
    try:
        graph = Graph(lock)
        edges = {node.hash: [edge.hash for edge in node.dependencies] for node in graph}
        graphlib.TopologicalSorter(edges).prepare()
    except UnreadableLock as error:
        yield str(error)[:MAX_TEXT]
        return
    except graphlib.CycleError as error:
        cycle = " and ".join(str(nodes[one]["name"]) for one in error.args[1][:3])
        yield f"its nodes need each other: {cycle}"
        return
    # What a spliced node was built from is in the lockfile, and no root leads to it.
    spliced = any("build_spec" in node for node in nodes.values())
    stray = [] if spliced else [key for key in nodes if key not in edges]
    if stray:
        yield f"no root leads to {nodes[stray[0]]['name']}/{stray[0][:7]}"


def unfit(
    lock: Mapping[str, Any], *, release: tuple[int, ...] | None, platform: str, target: str
) -> tuple[str, str] | None:
    """Return why this Spack and machine cannot use a whole lockfile, and what to do, or None.

    `release` is the base image's Spack, if it is known.
    """
    graph = Graph(lock)
    if release is not None and graph.release is not None:
        common = min(len(release), len(graph.release))
        if release[:common] != graph.release[:common]:
            return (
                f"Spack {_dotted(graph.release)} wrote it, and the base image has Spack "
                f"{_dotted(release)}",
                "concretize again with that Spack, or use a service that has the other",
            )
    for node in graph.built():
        if (other := _system(lock, node)) != "linux":
            return f"{node} is for {other}, and {platform} is asked for", "bring a lock for linux"
        if node.target != target:
            return (
                f"{node} is for {node.target}, and the machine is {target}",
                f'write "architecture": "{node.target}", or bring a lock for {target}',
            )
    return None


def _system(lock: Mapping[str, Any], node: Node) -> str:
    return str(lock["concrete_specs"][node.hash]["arch"].get("platform"))[:60]


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, str | int) else type(value).__name__
    return repr(text[:60]) if isinstance(value, str) else text[:60]
