"""Serve the pages of what is in an image: the list of its packages, and the graph of its environment."""

from __future__ import annotations

import functools
from typing import Any

from flask import Blueprint, render_template, request

from image_builder.proof.installed import KINDS, graph_of_lock
from image_builder.spack import lockfile
from image_builder.timeline import origins
from service.api.queries import MAX_SEARCH
from service.errors import Missing
from service.packages import Installed, choose, installed_in
from service.web import graph_drawing
from service.web.forms import page_number
from service.web.images import sight
from service.web.session import service

PER_PAGE = 100


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/images/packages/<identity>", "packages", packages)
    web.add_url_rule("/images/graph/<identity>", "graph", graph)


def packages(identity: str) -> str:
    """Show what is installed in an image, or what a search finds of it."""
    found = installed_in(functools.partial(_document, _visible(identity)))
    search = request.args.get("search", "")[:MAX_SEARCH]
    kind = request.args.get("kind")
    chosen = choose(
        found,
        search=search,
        kind=kind if kind in KINDS else None,
        page=page_number(),
        per_page=PER_PAGE,
    )
    return render_template(
        "packages.html",
        identity=identity,
        found=found,
        chosen=chosen,
        search=search,
        kind=kind,
        kinds=KINDS,
        counts=_counts(found),
        origins=origins.ORIGINS,
        filename=_filename(identity),
    )


def graph(identity: str) -> str:
    """Show the graph of an image's environment, with where each package came from."""
    _visible(identity)
    graph = graph_of_lock(_document(identity, lockfile.FILE))
    to_run = request.args.get("show") == "run"
    known = origins.read(_document(identity, origins.FILE))
    drawing = None if graph is None else graph_drawing.draw(graph, to_run=to_run)
    nodes = [] if graph is None else graph_drawing.nodes_of(graph, to_run=to_run)
    return render_template(
        "graph.html",
        identity=identity,
        graph=graph,
        drawing=drawing,
        nodes=sorted(nodes, key=lambda node: (node.name, node.hash)),
        names={node.hash: node.name for node in nodes},
        to_run=to_run,
        origin_of=functools.partial(_origin, known),
        origins=origins.ORIGINS,
        box=(graph_drawing.NODE_WIDTH, graph_drawing.NODE_HEIGHT),
        filename=_filename(identity),
    )


def _visible(identity: str) -> str:
    if not sight().may_see_identity(identity):
        raise Missing("There is no such image.", hint="It may have been removed: build it again.")
    return identity


def _filename(identity: str) -> str | None:
    """Return a name under which the user sees the image, or None."""
    names = sight().names().items()
    return next((name for name, record in names if record.identity == identity), None)


def _document(identity: str, name: str) -> str | None:
    return service().images.document(identity, name)


def _origin(known: Any, node: lockfile.Node) -> str | None:
    origin: str | None = origins.EXTERNAL if node.external else known.get(node.hash)
    return origin


def _counts(found: Installed) -> dict[str, int]:
    """Return how many packages there are of each kind."""
    return {kind: sum(one.kind == kind for one in found.packages) for kind in KINDS}
