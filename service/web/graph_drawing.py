"""Lay out an environment's graph in layers, what needs something above what it needs. Pure.

Of a graph that is too large to be read, the roots and what they need directly are drawn. An edge
that a longer way says as well is left out of the drawing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from image_builder.spack.lockfile import Graph, Node

MAX_NODES = 300
MAX_IN_ROW = 10
SWEEPS = 6
"""How often layers are put in order by what is above and below them."""
NODE_WIDTH, NODE_HEIGHT = 150, 38
GAP, ROW_GAP, LAYER_GAP, MARGIN = 14, 12, 46, 8
RUNTIME = frozenset({"link", "run"})

Needs = Mapping[str, Sequence[str]]
"""The hashes of what each node needs, by its own hash."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """Describes where a node is drawn."""

    node: Node
    x: int
    y: int
    is_root: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Describes an edge, as the path of an SVG; `is_build` says that only building needs it."""

    path: str
    is_build: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """Describes a drawn graph.

    `is_part` says that only roots and what they need directly are drawn, of `total` nodes.
    """

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: int
    height: int
    is_part: bool
    total: int


def draw(graph: Graph, *, to_run: bool = False) -> Drawing:
    """Return the drawing of a graph; with `to_run`, of what the roots need to run."""
    nodes = nodes_of(graph, to_run=to_run)
    roots = [node.hash for node in graph.root_nodes()]
    shown = {node.hash: node for node in nodes}
    is_part = len(shown) > MAX_NODES
    if is_part:
        near = {edge.hash for root in roots for edge in graph[root].dependencies}
        kept = [*roots, *sorted(near - set(roots), key=lambda one: graph[one].name)][:MAX_NODES]
        shown = {one: graph[one] for one in kept if one in shown}
    needs = {
        one: [edge.hash for edge in node.dependencies if edge.hash in shown]
        for one, node in shown.items()
    }
    layers = _ordered(_layers(needs, [root for root in roots if root in shown]), needs, shown)
    places, width, height = _places(layers)
    return Drawing(
        boxes=tuple(
            Box(node=shown[one], x=x, y=y, is_root=one in roots) for one, (x, y) in places.items()
        ),
        lines=tuple(_lines(needs, shown, places)),
        width=width,
        height=height,
        is_part=is_part,
        total=len(nodes),
    )


def nodes_of(graph: Graph, *, to_run: bool) -> list[Node]:
    """Return the nodes of a graph; with `to_run`, those that the roots need to run."""
    if not to_run:
        return list(graph)
    seen: dict[str, None] = {}
    waiting = [node.hash for node in graph.root_nodes()]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen[one] = None
            waiting += [
                edge.hash
                for edge in graph[one].dependencies
                if not edge.types or edge.types & RUNTIME
            ]
    return [node for node in graph if node.hash in seen]


def _layers(needs: Needs, roots: Sequence[str]) -> list[list[str]]:
    """Return the nodes by their longest way from a root; a circle, which no lockfile has, ends it."""
    above = dict.fromkeys(needs, 0)
    for below in needs.values():
        for one in set(below):
            above[one] += 1
    depth: dict[str, int] = dict.fromkeys(roots, 0)
    ready = [one for one in needs if not above[one]]
    while ready:
        one = ready.pop()
        for below in set(needs[one]):
            depth[below] = max(depth.get(below, 0), depth.get(one, 0) + 1)
            above[below] -= 1
            if not above[below]:
                ready.append(below)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for one in needs:
        layers[depth.get(one, 0)].append(one)
    return [layer for layer in layers if layer]


def _ordered(layers: list[list[str]], needs: Needs, shown: Mapping[str, Node]) -> list[list[str]]:
    """Return the layers, in each of which a node is near the middle of what it is joined with."""
    users: dict[str, list[str]] = {one: [] for one in needs}
    for one, below in needs.items():
        for other in below:
            users[other].append(one)
    layers = [sorted(layer, key=lambda one: (shown[one].name, one)) for layer in layers]
    for sweep in range(SWEEPS):
        joined = users if sweep % 2 == 0 else needs
        middle = {
            one: (place + 0.5) / len(layer) for layer in layers for place, one in enumerate(layer)
        }
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {
                one: _mean([middle[other] for other in joined[one]], middle[one]) for one in layer
            }
            layer.sort(key=lambda one, wanted=wanted: wanted[one])  # type: ignore[misc]
            middle |= {one: (place + 0.5) / len(layer) for place, one in enumerate(layer)}
    return layers


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _places(layers: Iterable[Sequence[str]]) -> tuple[dict[str, tuple[int, int]], int, int]:
    """Return where each node is, and the drawing's width and height; long layers have rows."""
    rows: list[tuple[Sequence[str], int]] = []
    y = MARGIN
    for layer in layers:
        count = -(-len(layer) // MAX_IN_ROW)
        for number in range(count):
            rows.append(
                (layer[number * len(layer) // count : (number + 1) * len(layer) // count], y)
            )
            y += NODE_HEIGHT + ROW_GAP
        y += LAYER_GAP - ROW_GAP
    widest = max((len(row) for row, _ in rows), default=0)
    width = widest * (NODE_WIDTH + GAP) - GAP + 2 * MARGIN if widest else 2 * MARGIN
    places: dict[str, tuple[int, int]] = {}
    for row, top in rows:
        left = (width - len(row) * (NODE_WIDTH + GAP) + GAP) // 2
        places |= {one: (left + n * (NODE_WIDTH + GAP), top) for n, one in enumerate(row)}
    return places, width, max(y - LAYER_GAP + MARGIN, 2 * MARGIN)


def _lines(
    needs: Needs, shown: Mapping[str, Node], places: Mapping[str, tuple[int, int]]
) -> Iterable[Line]:
    reached = _reached(needs)
    for one, below in needs.items():
        types = {edge.hash: edge.types for edge in shown[one].dependencies}
        for other in dict.fromkeys(below):
            if any(other in reached[third] for third in below if third != other):
                continue
            (x1, y1), (x2, y2) = places[one], places[other]
            x1, x2, y1 = x1 + NODE_WIDTH // 2, x2 + NODE_WIDTH // 2, y1 + NODE_HEIGHT
            bend = max(12, (y2 - y1) // 2)
            yield Line(
                path=f"M{x1} {y1}C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2}",
                is_build=bool(types[other]) and not types[other] & RUNTIME,
            )


def _reached(needs: Needs) -> dict[str, set[str]]:
    """Return what each node leads to, by whatever way."""
    reached: dict[str, set[str]] = {}
    for start in needs:
        seen: set[str] = set()
        waiting = list(needs[start])
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            if one in reached:
                seen |= reached[one]
            else:
                waiting += needs[one]
        reached[start] = seen
    return reached
