"""From a step's description and a machine to what goes into the image. Pure: no file, no process.

`parse_description` reads `eflows4hpc.yaml`, `compose` merges it with the machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from image_builder.base import BaseFacts
from image_builder.request import Machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a step says it needs. `pip` None: nothing was said, a `requirements.txt` beside it counts."""

    file: str
    text: str
    apt: tuple[str, ...] = ()
    pip: tuple[str, ...] | None = None
    spack: Mapping[str, Any] | None = None
    smoke: tuple[str, ...] | None = None
    slim: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """What goes into one image, for one machine.

    `spack` is the body of `spack.yaml` and `spack_yaml` its text; both None when nothing needs Spack. `from_source`
    says that the roots are built from source and their stages kept, for a post-install script.
    """

    target: str
    apt: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    requirements: str | None = None
    spack: Mapping[str, Any] | None = None
    spack_yaml: str | None = None
    roots: tuple[str, ...] = ()
    mpi: str | None = None
    gpu: str | None = None
    gpu_arch: str | None = None
    from_source: bool = False
    smoke: tuple[str, ...] | None = None
    slim: bool | None = None
    warnings: tuple[str, ...] = ()


def parse_description(text: str, file: str) -> Description:
    """The description that `text` holds; `file` is its name in the step's folder.

    Raises `BadDescription` that tells every wrong entry, the first one's line, and what to write instead.
    """
    raise NotImplementedError


def compose(description: Description, machine: Machine, *, base: BaseFacts, requirements: str | None = None,
            has_post_install: bool = False, site_packages: Mapping[str, Any] | None = None) -> Environment:
    """What an image of `description` for `machine` holds, on a base image of which `base` is known.

    `requirements` is the text of the `requirements.txt` beside the description, `site_packages` the `packages` of the
    site's own Spack configuration. Raises `BadDescription` (`CONFLICT`) where workflow and machine cannot both hold.
    """
    raise NotImplementedError
