"""`BASE`/`BASE`: the base image that every other image of a platform is built on.

An operating system's image, compilers, and Spack with its packages. Only administrators build it.
"""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

import jinja2

from image_builder.catalogue import Holding, Shelf, ShelfPin, open_shelf
from image_builder.errors import Misconfigured
from image_builder.gitremote import Network
from image_builder.process import CancelToken
from image_builder.settings import LibrarySettings

BASE_RECIPE = "base-1"

SPACK = Holding(
    name="Spack",
    key="spack_repository in build_cfg",
    wanted=lambda path: _is_spack_file(path),
    required="bin/spack",
)
SPACK_PACKAGES = Holding(
    name="Spack package repository",
    key="spack_packages_repository in build_cfg",
    wanted=lambda path: path.startswith("repos/") and "__pycache__" not in path,
)


def _is_spack_file(path: str) -> bool:
    """What a checkout installed or remembered beside Spack's own files does not count."""
    return "__pycache__" not in path and not path.startswith(
        (".git/", "opt/", "var/spack/cache/", "var/spack/environments/")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PinnedSpack:
    """Which Spack, and which packages beside it; a Spack before 1.0 has its packages inside."""

    spack: ShelfPin
    packages: ShelfPin | None


class SpackSource:
    """The Spack that the settings name."""

    def __init__(self, settings: LibrarySettings) -> None:
        mirrors, network = settings.build.tmp_folder / "mirrors", Network.of(settings)
        max_age_s = settings.repositories.mirror_max_age_s
        spack = open_shelf(settings.build.spack_repository, SPACK, mirrors, network, max_age_s)
        if spack is None:
            raise Misconfigured(
                "build_cfg has no spack_repository, and the base image needs a Spack.",
                hint="Write the git URL or folder of Spack, with #tag behind it.",
            )
        self._spack: Shelf = spack
        self._packages = open_shelf(
            settings.build.spack_packages_repository, SPACK_PACKAGES, mirrors, network, max_age_s
        )

    def pin(self, cancel: CancelToken | None = None) -> PinnedSpack:
        """What is there now."""
        return PinnedSpack(
            spack=self._spack.pin(cancel),
            packages=self._packages.pin(cancel) if self._packages is not None else None,
        )

    def copy(self, pinned: PinnedSpack, context: Path, cancel: CancelToken | None) -> None:
        """Write what was pinned into a build context."""
        self._spack.copy(pinned.spack, context / "spack", cancel)
        if self._packages is not None and pinned.packages is not None:
            self._packages.copy(pinned.packages, context / "spack-packages", cancel)


def render_base(base_reference: str, *, has_packages: bool) -> tuple[str, dict[str, str]]:
    """The Dockerfile of the base image, and the files beside it. Pure."""
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    ).from_string(_read(f"{BASE_RECIPE}/Dockerfile.j2"))
    files = {f"cic/{name}": _read(f"{BASE_RECIPE}/{name}") for name in ("tools.sh", "spack.sh")}
    return template.render(base=base_reference, has_packages=has_packages), {
        **files,
        "cic/lib.sh": _read("1/lib.sh"),
    }


def _read(name: str) -> str:
    return resources.files("image_builder").joinpath(f"recipes/{name}").read_text("utf-8")
