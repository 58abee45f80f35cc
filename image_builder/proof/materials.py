"""Writes and reads what an image was made of, whole enough to build it again. Pure.

The document has what the bill of materials and the statement name by digests alone: the request, the
`spack.lock`, and every file that apt and pip took. Nothing in it is a secret, and nothing names the
place where the image was built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from image_builder.proof.contents import Contents
from image_builder.proof.sbom import nodes_in_image
from image_builder.proof.spack_sources import source_of
from image_builder.proof.used import Debian
from image_builder.recipe.pins import Part, PythonPackage
from image_builder.spack.lockfile import Graph

FILE = "materials.json"
"""The name of the document, in the store."""
MAX_BYTES = 64 * 1024**2


class UnreadableMaterials(ValueError):
    """The document is not one that this version of the service writes."""


class Step(Part):
    """Names the step's folder by the hash that git gives it; `commit` is None for a plain folder."""

    workflow: str
    step_id: str
    version: str
    tree: str
    commit: str | None = None
    source: str | None = None
    """The public address of the workflow registry."""


class Catalogue(Part):
    """Names the site's packages and Spack configuration."""

    packages_tree: str | None = None
    packages_commit: str | None = None
    config_tree: str | None = None
    config_commit: str | None = None


class BaseImage(Part):
    """Names an image that a build starts from, as `FROM` does, with its digest."""

    reference: str
    digest: str | None = None
    spack_version: tuple[int, ...] | None = None


class Source(Part):
    """Says where Spack took the source of a node of the lockfile from."""

    name: str
    version: str
    hash: str
    url: str = ""
    checksums: dict[str, str] = Field(default_factory=dict)


class Materials(Part):
    """Holds everything that an image was made of."""

    format: Literal[1] = 1
    image_id: str
    identity: str
    recipe: str
    platform: str
    target: str
    is_slim: bool
    request: dict[str, Any]
    step: Step
    catalogue: Catalogue
    base: BaseImage
    runtime: BaseImage | None = None
    branch_commits: dict[str, str] = Field(default_factory=dict)
    lock_digest: str | None = None
    """What the identity has of a lockfile and packages that a request brought."""
    is_lock_foreign: bool = False
    """The `spack.lock` came with a request; it is not what Spack decided here."""
    spack_lock: dict[str, Any] | None = None
    debian: Debian
    python: tuple[PythonPackage, ...] = ()
    sources: tuple[Source, ...] = ()

    def text(self) -> str:
        """Return the document; the keys of `spack.lock` stay in Spack's order."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def read_materials(text: str) -> Materials:
    """Return what a document says. Raises `UnreadableMaterials`."""
    if len(text) > MAX_BYTES:
        raise UnreadableMaterials("the document is larger than any that is written")
    try:
        return Materials.model_validate_json(text)
    except (ValidationError, RecursionError) as error:
        raise UnreadableMaterials("the document is not of a known form") from error


def spack_sources(
    lock: Mapping[str, Any] | None, contents: Contents, *, is_slim: bool
) -> tuple[Source, ...]:
    """Return the sources of what Spack built, as the files of the image know them."""
    if not lock:
        return ()
    sources = []
    for node in nodes_in_image(Graph(lock), contents, is_slim=is_slim):
        prefix = contents.prefixes.get(node.hash)
        if node.external or prefix is None:
            continue
        known = source_of(node.version, prefix.document, prefix.recipe)
        sources.append(
            Source(
                name=node.name,
                version=node.version,
                hash=node.hash,
                url=known.url,
                checksums=dict(known.checksums),
            )
        )
    return tuple(sources)
