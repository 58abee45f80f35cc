"""Find what is installed in an image, and where each package came from, in its documents."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from image_builder.proof import installed, sbom
from image_builder.proof.installed import Package
from image_builder.spack import lockfile
from image_builder.timeline import origins

SOURCES = (
    (sbom.FILE, installed.packages_of_sbom),
    (lockfile.FILE, installed.packages_of_lock),
)
"""The documents that tell it, the better one first."""


class Documents(Protocol):
    """Returns a text about one image by its name, or None."""

    def __call__(self, name: str, /) -> str | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Installed:
    """Describes what is installed in an image.

    `source` is the name of the document that tells it; without one nothing is known. `origins` has
    the origin of packages by their hash.
    """

    packages: Sequence[Package]
    source: str | None
    origins: Mapping[str, str]

    def origin(self, package: Package) -> str | None:
        """Return where a package came from; None where that is not known."""
        return None if package.hash is None else self.origins.get(package.hash)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Describes a page of the packages that a search finds."""

    packages: Sequence[Package]
    page: int
    pages: int
    total: int


def installed_in(document: Documents) -> Installed:
    """Return what is installed in the image that these documents are about."""
    for name, read in SOURCES:
        text = document(name)
        packages = None if text is None else read(text)
        if packages is not None:
            return Installed(
                packages=packages, source=name, origins=origins.read(document(origins.FILE))
            )
    return Installed(packages=(), source=None, origins={})


def choose(found: Installed, *, search: str, kind: str | None, page: int, per_page: int) -> Chosen:
    """Return a page of the packages that have every word of a search, and are of a kind."""
    words = search.lower().split()
    chosen = [
        one for one in found.packages if (kind is None or one.kind == kind) and one.has(words)
    ]
    pages = max(1, math.ceil(len(chosen) / per_page))
    return Chosen(
        packages=chosen[(page - 1) * per_page : page * per_page],
        page=page,
        pages=pages,
        total=len(chosen),
    )
