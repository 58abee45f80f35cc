"""Writes down what a build used, whole enough to build the same again: `materials.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from image_builder.build import evidence, stages
from image_builder.build.context import BuildContext, Built
from image_builder.build.relock import require_same
from image_builder.docker import daemon
from image_builder.docker.base_image import BaseFacts
from image_builder.errors import BuildFailed, CicError
from image_builder.plan.relock import digest_in
from image_builder.proof import materials, used
from image_builder.proof.materials import BaseImage, Catalogue, Materials, Step
from image_builder.recipe.stages import USED_STAGE
from image_builder.spack.lockfile import UnreadableLock


def documents(context: BuildContext, built: Built, lock: Mapping[str, Any]) -> dict[str, str]:
    """Return the document by its name; nothing for a base image, or where it cannot be made.

    Raises `BuildFailed` for what was to be built again and became something else.
    """
    if context.request.is_base:
        return {}
    try:
        files = stages.export(context, USED_STAGE, used.NAMES, used.MAX_BYTES)
        said = _materials(context, built, lock, files)
        require_same(context, said)
        return {materials.FILE: said.text()}
    except (CicError, used.UnreadableUse, UnreadableLock) as error:
        context.cancel.check()
        if context.inputs.relock is not None and context.inputs.relock.pins is not None:
            daemon.remove_image(built.image)
            if isinstance(error, CicError):
                raise
            raise BuildFailed(f"What the build used is not known: {error}.") from error
        context.warn(f"what the build used is not kept: {error}")
        return {}


def _materials(
    context: BuildContext, built: Built, lock: Mapping[str, Any], files: Mapping[str, bytes]
) -> Materials:
    inputs, request, installed = context.inputs, context.request, built.contents
    step, catalogue = inputs.step, inputs.catalogue
    return Materials(
        image_id=context.documented_as,
        identity=context.identity,
        recipe=inputs.recipe_version,
        platform=context.platform,
        target=request.machine.target.name,
        is_slim=built.is_slim,
        request=request.image_fields(),
        step=Step(
            workflow=step.workflow,
            step_id=step.step_id,
            version=step.version,
            tree=step.tree,
            commit=step.commit,
            source=evidence.source_of(context),
        ),
        catalogue=Catalogue(
            packages_tree=catalogue.packages_tree,
            packages_commit=catalogue.packages_commit,
            config_tree=catalogue.config_tree,
            config_commit=catalogue.config_commit,
        ),
        base=_base_image(inputs.base),
        runtime=_base_image(inputs.runtime) if inputs.runtime is not None else None,
        branch_commits=dict(inputs.branch_commits),
        lock_digest=digest_in(context.identity, inputs.relock),
        is_lock_foreign=inputs.relock is not None and inputs.relock.is_foreign,
        spack_lock=dict(lock) or None,
        debian=used.debian_of(files),
        python=used.python_packages(files),
        sources=()
        if installed is None
        else materials.spack_sources(lock, installed, is_slim=built.is_slim),
    )


def _base_image(facts: BaseFacts) -> BaseImage:
    return BaseImage(
        reference=facts.reference, digest=facts.digest, spack_version=facts.spack_version
    )
