"""Says of each package of an image where it came from, as a document beside the image. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from image_builder.spack.lockfile import Graph, Node, UnreadableLock
from image_builder.timeline.spans import BUILT, CACHED, PRESENT, Span

FILE = "origins.json"
"""The name of the document."""
LAYER, EXTERNAL = "layer", "external"
ORIGINS = {
    BUILT: "built from source",
    CACHED: "taken from the build cache",
    PRESENT: "installed before",
    LAYER: "taken with a layer of an earlier build",
    EXTERNAL: "the base image had it",
}
MAX_BYTES = 16 * 1024**2


def document(lock: Mapping[str, Any], spans: Iterable[Span]) -> str | None:
    """Return the document about what was installed from a lockfile; None without a lockfile.

    `spans` are what the install's log told of packages; of what it did not tell, a layer came from
    an earlier build.
    """
    try:
        nodes = list(Graph(lock))
    except UnreadableLock:
        return None
    told = {(span.name, span.hash[:7]): span for span in spans}
    packages = {node.hash: _origin(node, told.get((node.name, node.hash[:7]))) for node in nodes}
    return json.dumps({"packages": packages}, sort_keys=True, indent=1) + "\n"


def _origin(node: Node, span: Span | None) -> dict[str, Any]:
    if node.external:
        return {"origin": EXTERNAL}
    if span is None or span.outcome not in ORIGINS or span.ended_s is None:
        return {"origin": LAYER}
    return {"origin": span.outcome, "seconds": round(span.ended_s - span.began_s, 1)}


def read(text: str | None) -> dict[str, str]:
    """Return the origin of each package by its hash; nothing of a document that is none."""
    if text is None or len(text) > MAX_BYTES:
        return {}
    try:
        packages = json.loads(text)["packages"]
        return {
            node_hash: said["origin"]
            for node_hash, said in packages.items()
            if said["origin"] in ORIGINS
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
