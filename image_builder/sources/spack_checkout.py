"""Pins Spack itself and its packages, as sources of a base image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from image_builder.errors import Misconfigured
from image_builder.host.cancellation import CancelToken
from image_builder.settings import BuildSettings, RepositorySettings
from image_builder.sources.git.remote import Network
from image_builder.sources.source_tree import PinnedTree, TreeKind, TreeSource, open_source

SPACK = TreeKind(
    name="Spack",
    key="spack_repository in build_cfg",
    wanted=lambda path: _is_spack_file(path),
    required="bin/spack",
)
SPACK_PACKAGES = TreeKind(
    name="Spack package repository",
    key="spack_packages_repository in build_cfg",
    wanted=lambda path: path.startswith("repos/") and "__pycache__" not in path,
)


def _is_spack_file(path: str) -> bool:
    """Return whether a file is Spack's own; what a checkout installed or cached does not count."""
    return "__pycache__" not in path and not path.startswith(
        (".git/", "opt/", "var/spack/cache/", "var/spack/environments/")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PinnedSpack:
    """Says which Spack is used, with which packages; before 1.0 Spack contains its packages."""

    spack: PinnedTree
    packages: PinnedTree | None


class SpackSource:
    """Reads the Spack that the settings name."""

    def __init__(self, repositories: RepositorySettings, build: BuildSettings) -> None:
        mirrors, network = build.mirrors_folder, Network.of(repositories, build)
        max_age_s = repositories.mirror_max_age_s
        spack = open_source(build.spack_repository, SPACK, mirrors, network, max_age_s)
        if spack is None:
            raise Misconfigured(
                "build_cfg has no spack_repository, and the base image needs a Spack.",
                hint="Write the git URL or folder of Spack, with #tag behind it.",
            )
        self._spack: TreeSource = spack
        self._packages = open_source(
            build.spack_packages_repository, SPACK_PACKAGES, mirrors, network, max_age_s
        )

    def pin(self, cancel: CancelToken | None = None) -> PinnedSpack:
        """Return what is there now."""
        return PinnedSpack(
            spack=self._spack.pin(cancel),
            packages=self._packages.pin(cancel) if self._packages is not None else None,
        )

    def copy(self, pinned: PinnedSpack, context: Path, cancel: CancelToken | None) -> None:
        """Write what was pinned into a build context."""
        self._spack.copy(pinned.spack, context / "spack", cancel)
        if self._packages is not None and pinned.packages is not None:
            self._packages.copy(pinned.packages, context / "spack-packages", cancel)
