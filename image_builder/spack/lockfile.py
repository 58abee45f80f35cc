"""Reads the graph of a `spack.lock`, as Spack 0.19 to 1.2 write it (versions 4 to 7). Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

FILE = "spack.lock"


class UnreadableLock(ValueError):
    """The lockfile is incomplete, or not one that Spack 0.19 to 1.2 writes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """Describes one concrete spec of a lockfile."""

    hash: str
    name: str
    version: str
    target: str
    external: bool
    parameters: Mapping[str, Any]
    dependencies: tuple[Edge, ...]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}/{self.hash[:7]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edge:
    """Describes a dependency: a node's hash, and the virtual packages that it provides there.

    `virtuals` is empty in lockfiles that do not record them (Spack before 0.20).
    """

    hash: str
    virtuals: tuple[str, ...]
    types: frozenset[str] = frozenset()
    """When the dependency is needed: `build`, `link`, `run`, `test`."""


class Graph:
    """Holds the nodes of a lockfile that its roots lead to. Raises `UnreadableLock`.

    `user_roots` holds the hash of each root, and the spec for which the environment has it;
    `release` is the Spack that wrote the lockfile, where it says so.
    """

    def __init__(self, lock: Mapping[str, Any]) -> None:
        try:
            self.release = _release(lock)
            self.user_roots = tuple((root["hash"], root["spec"]) for root in lock["roots"])
            raw: Mapping[str, Any] = lock["concrete_specs"]
            self._nodes = {
                node_hash: _node(node_hash, raw[node_hash]) for node_hash in self._reachable(raw)
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise UnreadableLock(
                f"spack.lock cannot be read: {type(error).__name__}: {error}"
            ) from error

    def _reachable(self, raw: Mapping[str, Any]) -> list[str]:
        """Return hashes in the order of a walk from the roots.

        What a spliced node was built from is no part of the image.
        """
        order: dict[str, None] = {}
        waiting = [root_hash for root_hash, _ in reversed(self.user_roots)]
        while waiting:
            node_hash = waiting.pop()
            if node_hash not in order:
                order[node_hash] = None
                waiting += [
                    edge["hash"] for edge in reversed(raw[node_hash].get("dependencies") or [])
                ]
        return list(order)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __getitem__(self, node_hash: str) -> Node:
        return self._nodes[node_hash]

    def built(self) -> list[Node]:
        return [node for node in self if not node.external]

    def named(self, name: str) -> list[Node]:
        return [node for node in self if node.name == name]

    def root_nodes(self) -> list[Node]:
        return [
            self[root_hash]
            for root_hash in dict.fromkeys(root_hash for root_hash, _ in self.user_roots)
        ]

    def edges(self) -> Iterator[tuple[Node, Edge, Node]]:
        for node in self:
            for edge in node.dependencies:
                yield node, edge, self[edge.hash]


def _release(lock: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the release that a lockfile names; before 0.20 none does (lockfile version 4)."""
    said = lock.get("spack")
    version = str(said.get("version", "")) if isinstance(said, Mapping) else ""
    numbers = version.split("-")[0].split(".")[:3]
    if all(part.isdecimal() and len(part) < 6 for part in numbers):
        return tuple(map(int, numbers))
    meta = lock.get("_meta")
    is_old = isinstance(meta, Mapping) and meta.get("lockfile-version") in (3, 4)
    return (0, 19) if is_old else None


def _node(node_hash: str, raw: Mapping[str, Any]) -> Node:
    target = raw["arch"]["target"]
    return Node(
        hash=node_hash,
        name=raw["name"],
        version=str(raw["version"]),
        target=target if isinstance(target, str) else target["name"],
        external=bool(raw.get("external")),
        parameters=raw.get("parameters") or {},
        dependencies=tuple(_edge(edge) for edge in raw.get("dependencies") or []),
    )


def _edge(raw: Mapping[str, Any]) -> Edge:
    parameters = raw.get("parameters") or {}
    return Edge(
        hash=raw["hash"],
        virtuals=tuple(parameters.get("virtuals") or ()),
        types=frozenset(parameters.get("deptypes") or raw.get("type") or ()),
    )
