"""Opens the build cache store that a build uses, if the site has one for it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from image_builder.build.buildcache.mirror import MirrorTool
from image_builder.build.buildcache.signing import Signer
from image_builder.build.buildcache.stores import BuildCacheStore, FolderStore, RegistryStore
from image_builder.build.buildcache.sync import BuildCacheSync
from image_builder.build.context import BuildContext
from image_builder.build.stages import run_stage
from image_builder.plan.render import package_cache_of
from image_builder.recipe.environment import Environment
from image_builder.settings import ORAS
from image_builder.store.image_store import open_repository


def open_build_cache(
    context: BuildContext, environment: Environment, lock: dict[str, Any]
) -> BuildCacheSync | None:
    """Open the build cache that build hosts share, or None if this build has none."""
    build = context.settings.build
    name = package_cache_of(
        context.request, environment, context.inputs, context.settings.build, lock
    )
    if not build.has_package_place or name is None:
        return None
    tool = MirrorTool(
        scratch=context.workspace.scratch,
        runner=context.runner,
        cancel=context.cancel,
        timeout_s=build.push_timeout_s,
        on_line=context.observer.line,
    )
    keys = build.spack_cache_keys
    return BuildCacheSync(
        _open_store(context, name, tool),
        lock,
        signer=Signer(keys, cache=name) if keys is not None else None,
        tool=tool,
        workspace=context.workspace,
        run_stage=functools.partial(run_stage, context),
        observer=context.observer,
    )


def _open_store(context: BuildContext, name: str, tool: MirrorTool) -> BuildCacheStore:
    build = context.settings.build
    if not build.spack_cache.startswith(ORAS):
        return FolderStore(Path(build.spack_cache) / name, tool)
    return RegistryStore(
        open_repository(build.spack_cache, build, context.settings.registry),
        name,
        scratch=context.workspace.scratch,
        cancel=context.cancel,
    )
