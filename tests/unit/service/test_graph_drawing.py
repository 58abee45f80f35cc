"""The drawing of an environment's graph: nothing lies on anything else, and what is needed is below."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from image_builder.spack.lockfile import Graph
from service.web import graph_drawing
from service.web.graph_drawing import NODE_HEIGHT, NODE_WIDTH, Drawing, draw
from tests.conftest import DATA

LOCKS = sorted((DATA / "locks").glob("*.json"))


def lock(needs: dict[str, list[str]], roots: list[str]) -> Graph:
    """A lockfile of packages that need each other."""
    nodes = {
        name: {
            "name": name,
            "version": "1.0",
            "arch": {"target": "x86_64"},
            "dependencies": [{"hash": other, "type": ["link"]} for other in below],
        }
        for name, below in needs.items()
    }
    found: dict[str, Any] = {
        "roots": [{"hash": root, "spec": root} for root in roots],
        "concrete_specs": nodes,
    }
    return Graph(found)


def heights(drawing: Drawing) -> dict[str, int]:
    return {box.node.name: box.y for box in drawing.boxes}


@pytest.mark.parametrize("path", LOCKS[:6], ids=lambda path: path.stem)
def test_boxes_of_real_lockfiles_lie_apart_and_within_the_drawing(path: Path) -> None:
    graph = Graph(json.loads(path.read_text()))
    drawing = draw(graph)
    assert len(drawing.boxes) == len(list(graph)) and not drawing.is_part
    for one, other in itertools.combinations(drawing.boxes, 2):
        assert abs(one.x - other.x) >= NODE_WIDTH or abs(one.y - other.y) >= NODE_HEIGHT
    for box in drawing.boxes:
        assert 0 <= box.x <= drawing.width - NODE_WIDTH
        assert 0 <= box.y <= drawing.height - NODE_HEIGHT
    places = {box.node.hash: box.y for box in drawing.boxes}
    for node, _, other in graph.edges():
        assert places[node.hash] < places[other.hash], "what is needed is below"
    assert {box.node.hash for box in drawing.boxes if box.is_root} == {
        node.hash for node in graph.root_nodes()
    }
    for line in drawing.lines:
        assert re.fullmatch(r"M-?\d+ \d+C[-\d ]+", line.path)


def test_an_edge_that_a_longer_way_says_too_is_left_out() -> None:
    drawing = draw(lock({"a": ["b", "c"], "b": ["c"], "c": []}, ["a"]))
    assert len(drawing.lines) == 2
    assert heights(drawing)["a"] < heights(drawing)["b"] < heights(drawing)["c"]


def test_what_only_building_needs_is_left_out_of_what_runs() -> None:
    path = next(path for path in LOCKS if "1.1" in path.stem or "1.2" in path.stem)
    graph = Graph(json.loads(path.read_text()))
    runs, every = draw(graph, to_run=True), draw(graph)
    assert 0 < len(runs.boxes) < len(every.boxes)
    assert any(line.is_build for line in every.lines)
    assert not any(line.is_build for line in runs.lines)


def test_of_a_large_graph_roots_and_their_needs_are_drawn() -> None:
    many = [f"p{number}" for number in range(graph_drawing.MAX_NODES)]
    chain = {name: [after] for name, after in itertools.pairwise(many)}
    graph = lock({"root": ["p0", "p7"], **chain, many[-1]: []}, ["root"])
    drawing = draw(graph)
    assert drawing.is_part and drawing.total == graph_drawing.MAX_NODES + 1
    assert set(heights(drawing)) == {"root", "p0", "p7"}


def test_so_many_direct_needs_are_cut() -> None:
    names = [f"p{number}" for number in range(2 * graph_drawing.MAX_NODES)]
    drawing = draw(lock({"root": names, **{name: [] for name in names}}, ["root"]))
    assert len(drawing.boxes) == graph_drawing.MAX_NODES
    assert "root" in heights(drawing)


def test_an_empty_environment_and_a_circle_are_drawn() -> None:
    assert draw(lock({}, [])).boxes == ()
    circle = draw(lock({"a": ["b"], "b": ["c"], "c": ["b"]}, ["a"]))
    assert set(heights(circle)) == {"a", "b", "c"}
