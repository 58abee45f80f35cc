"""Pins the site's software catalogue and Spack configuration, and copies them into builds.

Each is a folder of this machine, used as it is, or a git repository. What is pinned are trees, not commits: the
packages (`repo.yaml`, `packages/` and what they import) and the configuration's files. A folder may be edited while a
build waits, so a copy of each pinned tree is kept below the mirrors, and a build gets exactly what was pinned for it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from image_builder.errors import Misconfigured
from image_builder.host.cancellation import CancelToken
from image_builder.settings import RepositorySettings
from image_builder.sources.branch_versions import (
    KnownBranches,
    branch_commits,
    branch_refs,
    no_branches,
)
from image_builder.sources.git.remote import Network, RemoteCommits
from image_builder.sources.source_tree import PinnedTree, TreeKind, TreeSource, open_source

PACKAGE_PARTS = ("repo.yaml", "packages", "build_systems")
"""The parts of a catalogue that define packages; documentation and other files do not count."""
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")


def _is_source(path: str) -> bool:
    """Return whether a file counts; bytecode that Python writes next to its sources does not."""
    name = path.rpartition("/")[2]
    return name != "__pycache__" and not name.endswith((".pyc", ".pyo"))


def _is_package_file(path: str) -> bool:
    return path.split("/", 1)[0] in PACKAGE_PARTS and _is_source(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PinnedCatalogue:
    """Holds what one build takes of the catalogue, as plain values that another process can use.

    They are None if the settings name no catalogue or no configuration. The trees are part of a
    build's identity, the commits (None for a folder) are only recorded.
    """

    packages_tree: str | None = None
    config_tree: str | None = None
    packages_commit: str | None = None
    config_commit: str | None = None


class Catalogue:
    """Reads the catalogue and configuration that the settings name. Threads may share it."""

    def __init__(
        self,
        settings: RepositorySettings,
        spack_cfg: str | None,
        mirrors: Path,
        *,
        network: Network | None = None,
    ) -> None:
        network = network or Network(
            schemes=settings.allowed_git_schemes,
            hosts=settings.allowed_git_hosts,
            timeout_s=settings.git_timeout_s,
        )
        max_age_s = settings.mirror_max_age_s
        self._packages = open_source(
            settings.software_repository, PACKAGES, mirrors, network, max_age_s
        )
        self._config = open_source(spack_cfg, CONFIG, mirrors, network, max_age_s)
        self._remote = RemoteCommits(network, max_age_s=max_age_s)

    def close(self) -> None:
        """End the processes that read mirrors."""
        for source in (self._packages, self._config):
            if source is not None:
                source.close()

    def pin(self, *, cancel: CancelToken | None = None) -> PinnedCatalogue:
        """Return what is there now.

        Raises `Misconfigured` or `Unavailable`, both with the name of the setting.
        """
        packages = self._packages.pin(cancel) if self._packages is not None else None
        config = self._config.pin(cancel) if self._config is not None else None
        return PinnedCatalogue(
            packages_tree=packages.tree if packages else None,
            packages_commit=packages.commit if packages else None,
            config_tree=config.tree if config else None,
            config_commit=config.commit if config else None,
        )

    def copy(
        self,
        pinned: PinnedCatalogue,
        packages: Path,
        config: Path,
        *,
        cancel: CancelToken | None = None,
    ) -> None:
        """Write what was pinned to the two folders, which must be missing or empty.

        If nothing was pinned, the folder is created and stays empty.
        """
        for source, tree, commit, destination in (
            (self._packages, pinned.packages_tree, pinned.packages_commit, packages),
            (self._config, pinned.config_tree, pinned.config_commit, config),
        ):
            if tree is None:
                destination.mkdir(parents=True, exist_ok=True)
            else:
                _named(source).copy(PinnedTree(tree=tree, commit=commit), destination, cancel)

    def config_text(self, pinned: PinnedCatalogue, name: str = "packages.yaml") -> str | None:
        """Return a file of the pinned configuration, or None if there is none."""
        return self._text(self._config, pinned.config_tree, pinned.config_commit, (name,))

    def package_text(self, pinned: PinnedCatalogue, package: str) -> str | None:
        """Return the `package.py` of a package, or None if the catalogue does not have it."""
        if not _PACKAGE_NAME.match(package):
            return None
        names = [f"packages/{name}/package.py" for name in (package, package.replace("-", "_"))]
        return self._text(self._packages, pinned.packages_tree, pinned.packages_commit, names)

    def branch_commits(
        self,
        pinned: PinnedCatalogue,
        specs: Iterable[object],
        *,
        known: KnownBranches = no_branches,
        cancel: CancelToken | None = None,
    ) -> tuple[dict[str, str], list[str]]:
        """Return the commits behind versions of `specs` that are branches, and warnings.

        The commits are `exageostat@master -> hash`. `known` gives the branches of Spack's own
        packages.
        """
        refs = branch_refs(specs, lambda package: self.package_text(pinned, package), known)
        resolved = branch_commits(refs, self._remote, cancel=cancel)
        commits = {name: commit for name, commit in resolved.commits.items() if commit is not None}
        return commits, list(resolved.warnings)

    @staticmethod
    def _text(
        source: TreeSource | None, tree: str | None, commit: str | None, names: Sequence[str]
    ) -> str | None:
        if tree is None:
            return None
        raw = _named(source).file(PinnedTree(tree=tree, commit=commit), names)
        return raw.decode("utf-8", "replace") if raw is not None else None


PACKAGES = TreeKind(
    name="software catalogue",
    key="software_repository in repositories_cfg",
    wanted=_is_package_file,
    required="repo.yaml",
)
CONFIG = TreeKind(name="Spack configuration", key="spack_cfg in build_cfg", wanted=_is_source)


def _named(source: TreeSource | None) -> TreeSource:
    if source is None:
        raise Misconfigured(
            "The build was pinned with a software catalogue or Spack configuration, and the settings "
            "name none any more.",
            hint="Send the request again.",
        )
    return source
