"""Writes down what a finished image is made of, and how it came about.

A document that cannot be made is a warning: the image is as good as without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from image_builder.build.context import BuildContext, Built
from image_builder.errors import CicError
from image_builder.plan import resolve
from image_builder.proof import contents, sbom
from image_builder.recipe.labels import public_address
from image_builder.sif import format
from image_builder.spack.lockfile import Graph, UnreadableLock

TOOL = "container-image-service"


def documents(built: Built) -> dict[str, str]:
    """Return the documents about an image by their names, as far as it has them."""
    return {} if built.sbom is None else {sbom.FILE: built.sbom}


def objects(built: Built) -> list[format.Object]:
    """Return what an image's SIF has of these documents."""
    if built.sbom is None:
        return []
    return [
        format.Object(
            data_type=format.DataType.SBOM,
            content=built.sbom.encode(),
            name=sbom.FILE,
            extra=format.SPDX_JSON,
        )
    ]


def bill_of_materials(
    context: BuildContext, image: str, lock: Mapping[str, Any], *, is_slim: bool
) -> str | None:
    """Return the bill of materials of an image in the daemon; None where there is to be none."""
    if not context.settings.proof.sbom:
        return None
    context.cancel.check()
    try:
        graph = Graph(lock) if lock else None
        hashes = [node.hash for node in graph] if graph else []
        installed = contents.read_contents(image, hashes, context.cancel)
        return sbom.sbom(_facts(context, is_slim=is_slim), graph, installed)
    except (CicError, UnreadableLock) as error:
        context.cancel.check()
        context.warn(f"the image gets no bill of materials: {error}")
        return None


def _facts(context: BuildContext, *, is_slim: bool) -> sbom.ImageFacts:
    inputs, request = context.inputs, context.request
    base = inputs.runtime if is_slim and inputs.runtime is not None else inputs.base
    return sbom.ImageFacts(
        image_id=inputs.image_id,
        identity=context.identity,
        platform=context.platform,
        target=request.machine.target.name,
        recipe=inputs.recipe_version,
        is_slim=is_slim,
        workflow=request.workflow_name,
        step_id=request.step_name,
        tree=inputs.step.tree,
        commit=inputs.step.commit,
        source=public_address(context.settings.repositories.workflow_repository),
        base=base.reference,
        base_digest=base.digest,
        created_s=resolve.step_time_s(request, inputs.step, context.settings, context.cancel),
        tool=TOOL,
    )
