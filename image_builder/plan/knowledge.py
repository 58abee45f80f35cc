"""Gets what is known of the Spack that will concretize a request, and checks the request by it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from image_builder.docker.base_image import BaseFacts
from image_builder.docker.spack_knowledge import kept_knowledge, spack_knowledge
from image_builder.recipe.machine_fit import require_machine
from image_builder.recipe.spack_yaml import packages_of
from image_builder.request import mpi_gpu
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from image_builder.sources.description import Description
from image_builder.sources.software_catalogue import Catalogue, PinnedCatalogue
from image_builder.sources.spec_places import spec_places
from image_builder.spack import spec
from image_builder.spack.knowledge import SpackKnowledge

NOT_ASKED = (
    "The base image's Spack could not be asked: whether it has the MPI, the GPU runtime, the "
    "compilers and the packages of this request is not checked."
)
MAX_NAMES = 1000
"""How many of a description's packages are looked up in the catalogue."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpackSite:
    """Says where a request's packages are from: the base image's Spack and the catalogue."""

    base: BaseFacts
    catalogue: Catalogue
    pinned: PinnedCatalogue
    cache: Path

    @classmethod
    def of(
        cls,
        base: BaseFacts,
        catalogue: Catalogue,
        pinned: PinnedCatalogue,
        settings: LibrarySettings,
    ) -> SpackSite:
        """Return the site, whose answers are kept below its `tmp_folder`."""
        folder = settings.build.tmp_folder / "cache" / "spack"
        return cls(base=base, catalogue=catalogue, pinned=pinned, cache=folder)

    @property
    def packages(self) -> Mapping[str, Any]:
        """Return the `packages` of the site's own Spack configuration."""
        return packages_of(self.catalogue.config_text(self.pinned))

    def ask(self, names: Iterable[str]) -> tuple[SpackKnowledge | None, str]:
        """Return what Spack knows, for a request with these packages, and a warning.

        There is a warning if Spack could not be asked.
        """
        knows, warning = spack_knowledge(self.base, self.cache)
        if knows is None:
            was_reached = self.base.digest is not None and self.base.is_here
            return None, warning or ("" if was_reached else NOT_ASKED)
        return self._own(knows, names), ""

    def remember(self, names: Iterable[str]) -> SpackKnowledge | None:
        """Return what Spack knows if it was asked before."""
        knows = kept_knowledge(self.base, self.cache)
        return self._own(knows, names) if knows is not None else None

    def _own(self, knows: SpackKnowledge, names: Iterable[str]) -> SpackKnowledge:
        """Leave out what the site has its own packages for."""
        if self.catalogue.config_text(self.pinned, "repos.yaml") is not None:
            knows = knows.model_copy(update={"has_all_packages": False})
        looked_up = list(dict.fromkeys(names))[:MAX_NAMES]
        return knows.without(
            name for name in looked_up if self.catalogue.package_text(self.pinned, name) is not None
        )


def names_in(request: BuildRequest, description: Description | None) -> list[str]:
    """Return the packages that a request and a description name."""
    body = (description.spack if description is not None else None) or {}
    machine = [request.machine.mpi, request.machine.gpu]
    asked = [match.group().lower() for text in machine if text and (match := _NAME.match(text))]
    named = (node.name for _, text, _ in spec_places(body) for node in spec.nodes(text))
    return [*asked, *filter(None, named), *(body.get("packages") or {})]


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def require_buildable(
    request: BuildRequest, description: Description | None, site: SpackSite
) -> None:
    """Raise `InvalidRequest` for an MPI, a GPU or a target that Spack cannot build.

    It is the base image's Spack, as far as it was asked before.
    """
    own = ((description.spack if description is not None else None) or {}).get("packages") or {}
    require_machine(
        request.machine,
        mpi_gpu.mpi_of(request.machine, site.base.spack_version),
        mpi_gpu.gpu_of(request.machine),
        site.remember(names_in(request, description)),
        [site.packages, own],
    )
