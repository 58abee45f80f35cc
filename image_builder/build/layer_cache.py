"""Says in which tags of the site's `build_cache` builders keep layers for each other. Pure."""

from __future__ import annotations

import dataclasses

from image_builder.plan.digest import json_digest
from image_builder.plan.image_name import is_private_name
from image_builder.plan.inputs import Inputs
from image_builder.recipe.stages import FINAL_STAGE, LOCK_STAGE, SLIM_STAGE
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings

KEPT_STAGES = (LOCK_STAGE, FINAL_STAGE, SLIM_STAGE)
"""Stages whose layers take time to make; the others take of these, or look at them."""


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Names the places of one stage's layers, as BuildKit's registry cache has them.

    `to_reference` is None for what is only read.
    """

    from_references: tuple[str, ...] = ()
    to_reference: str | None = None


def layer_cache(
    request: BuildRequest, inputs: Inputs, stage: str, settings: LibrarySettings
) -> LayerCache:
    """Return where a stage's layers are found, and where they are put.

    Each stage has a tag of its own: BuildKit replaces what a tag held. Layers of a private image go
    only where nobody else reads, and a bundle's build reaches no registry.
    """
    repository = settings.build.build_cache
    if repository is None or inputs.bundle is not None:
        return LayerCache()
    references = {one: f"{repository}:{_tag(request, one)}" for one in KEPT_STAGES}
    may_put = settings.registry.private or not is_private_name(inputs.image_id)
    return LayerCache(tuple(references.values()), references.get(stage) if may_put else None)


def _tag(request: BuildRequest, stage: str) -> str:
    """Return the tag of one step for one machine, in whatever version."""
    machine = request.machine
    step = (request.workflow_name, request.step_name)
    built_for = (machine.platform, machine.target.name, machine.mpi, machine.gpu)
    return f"{json_digest([*step, *built_for])[:16]}-{stage}"
