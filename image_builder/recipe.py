"""From an environment to a Dockerfile and the files beside it in the build context. Pure: no file, no process.

The Dockerfile holds no value that a description chose: those lie in files which the scripts read. It holds nothing of
the site either (its CA, mirrors, number of jobs): those come as build secrets, which are part of no layer and no key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from image_builder.base import BaseFacts
from image_builder.environment import Description, Environment
from image_builder.request import BuildRequest

LATEST_RECIPE = "1"
LOCK_STAGE = "lock"
"""Build target that exports `spack.lock` alone; only in recipes with `has_spack`."""
FINAL_STAGE = "final"
CA_BUNDLE_SECRET = "ca_bundle"
SITE_SECRET = "site"
SOURCES_CONTEXT = "spack-sources"
"""Name of the additional build context (`--build-context`) for `RecipeOptions.sources_folder`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What the build context holds beside what `render` makes."""

    has_catalogue: bool = False
    """`catalogue/`: the site's packages."""
    has_spack_config: bool = False
    """`spack-config/`: the site's Spack configuration."""
    has_post_install: bool = False
    """`step/post_inst.sh`."""
    sources_folder: bool = False
    """A Spack source mirror comes as the build context `SOURCES_CONTEXT`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A rendered recipe: `files` are to be written into the build context, beside `dockerfile` as `Dockerfile`."""

    version: str
    dockerfile: str
    files: Mapping[str, str]
    has_spack: bool


def render(environment: Environment, *, request: BuildRequest, description: Description, base: BaseFacts,
           options: RecipeOptions) -> Recipe:
    """The recipe of `environment` for `request`, built on `base.reference`."""
    raise NotImplementedError


def site_secret(*, build_jobs: int, pip_index_url: str | None = None, spack_mirror: str | None = None) -> str:
    """The text of the build secret `SITE_SECRET`: what the site lends to the build and no layer keeps.

    Pass it with `--secret id=site,src=<file>`, the CA bundle with `--secret id=ca_bundle,src=<file>`, and proxies as
    the predefined build arguments (`--build-arg http_proxy`).
    """
    raise NotImplementedError
