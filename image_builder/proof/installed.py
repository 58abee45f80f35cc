"""Reads from an image's documents what is installed in it: the list that people look at. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from image_builder.proof.sbom import NOASSERTION
from image_builder.spack.lockfile import Graph, UnreadableLock

SPACK, DEBIAN, PYTHON = "spack", "debian", "python"
KINDS = {SPACK: "Spack", DEBIAN: "Debian", PYTHON: "Python"}
MAX_BYTES = 64 * 1024**2
"""No longer document is read; one of ten thousand packages has some 10 MB."""
_STATED = "Stated as: "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """Describes a package of an image.

    `licence` is an SPDX expression, or what the package states in its own words; None where it
    states nothing. Spack's packages alone have a `hash`.
    """

    name: str
    version: str
    kind: str
    licence: str | None = None
    hash: str | None = None

    def has(self, words: Iterable[str]) -> bool:
        """Return whether each of these words, in lower case, is in what is shown of it."""
        shown = (self.name, self.version, self.licence, self.hash, KINDS[self.kind])
        text = " ".join(filter(None, shown)).lower()
        return all(word in text for word in words)


def packages_of_sbom(text: str) -> list[Package] | None:
    """Return the packages of a bill of materials that `sbom` wrote, by name; None for another text."""
    if len(text) > MAX_BYTES:
        return None
    try:
        found = [_package(one) for one in json.loads(text)["packages"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return _in_order(package for package in found if package is not None)


def packages_of_lock(text: str) -> list[Package] | None:
    """Return the packages of a lockfile, whose licences it does not tell; None for another text."""
    graph = graph_of_lock(text)
    if graph is None:
        return None
    return _in_order(
        Package(name=node.name, version=node.version, kind=SPACK, hash=node.hash) for node in graph
    )


def graph_of_lock(text: str | None) -> Graph | None:
    """Return the graph of a lockfile; None for a text that is none, or too long."""
    if text is None or len(text) > MAX_BYTES:
        return None
    try:
        return Graph(json.loads(text))
    except (UnreadableLock, ValueError, RecursionError):
        return None


def _in_order(packages: Iterable[Package]) -> list[Package]:
    return sorted(packages, key=lambda one: (one.name.lower(), one.kind, one.version))


def _package(said: Mapping[str, Any]) -> Package | None:
    """Return a package that is installed; the image, its base and its step are none."""
    references = {
        one["referenceType"]: str(one["referenceLocator"]) for one in said.get("externalRefs", ())
    }
    node_hash = None
    if "spack-hash" in references:
        kind, node_hash = SPACK, references["spack-hash"].rpartition("/")[2]
    elif references.get("purl", "").startswith("pkg:deb/"):
        kind = DEBIAN
    elif references.get("purl", "").startswith("pkg:pypi/"):
        kind = PYTHON
    else:
        return None
    return Package(
        name=str(said["name"]),
        version=str(said.get("versionInfo", "")),
        kind=kind,
        licence=_licence(said),
        hash=node_hash,
    )


def _licence(said: Mapping[str, Any]) -> str | None:
    declared = str(said.get("licenseDeclared", NOASSERTION))
    if declared != NOASSERTION:
        return declared
    return str(said.get("licenseComments", "")).removeprefix(_STATED) or None
