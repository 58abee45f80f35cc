"""Finds what an earlier build made of the same inputs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from image_builder.build import evidence
from image_builder.build.context import BuildContext, Built
from image_builder.build.stages import MAX_LOCK_BYTES
from image_builder.docker import daemon, registry
from image_builder.docker.label_names import SLIM
from image_builder.plan.render import render_request
from image_builder.proof import provenance, sbom
from image_builder.spack import lockfile
from image_builder.store.image_store import Images
from image_builder.store.record import PUSHED_AS, SUBMITTED_AT, ImageRecord

RECORD_FOLDER = "/opt/cic"


def stored_sif(context: BuildContext, store: Images) -> ImageRecord | None:
    """Return the stored SIF with this identity, or None if a build or push is needed.

    It gets the name that this request asks for.
    """
    inputs = context.inputs
    if context.request.force or inputs.push or inputs.filename is None:
        return None
    earlier = store.by_identity(context.identity)
    if earlier is None or earlier.sha256 is None:
        return None
    context.observer.line("This image exists already: nothing is built.")
    return store.point(
        earlier.model_copy(
            update={
                "filename": inputs.filename,
                "image_id": inputs.image_id,
                "details": {**earlier.details, SUBMITTED_AT: context.submitted_at()},
            }
        )
    )


def existing_image(context: BuildContext, store: Images) -> Built | None:
    """Return the image that an earlier build made of the same inputs, here or in the registry.

    In the registry it is found by the digest that this service kept when it pushed it.

    Only what passed its checks has documents here, or a name: a build that was killed may have left
    an image that never was checked.
    """
    if context.request.force:
        return None
    identity = context.identity
    earlier = store.by_identity(identity)
    details = earlier.details if earlier else {}
    image = daemon.find_by_identity(identity, named=not store.documents(identity))
    if image is None and details.get(PUSHED_AS):
        image = registry.pull_pushed(
            details[PUSHED_AS],
            identity,
            context.platform,
            context.settings.registry,
            runner=context.runner,
            cancel=context.cancel,
        )
    if image is None:
        return None
    context.observer.line("This image exists already: nothing is built.")
    _keep_documents_of(context, store, image)
    labels = daemon.image_labels(image)
    built = Built(
        image=image,
        reused=True,
        labels=labels,
        audit=details.get("audit") or _verdict_of(context, store),
        is_slim=SLIM in labels,
        full_because=details.get("full_because", ""),
        scan=details.get("scan"),
    )
    return dataclasses.replace(built, sbom=_sbom_of(context, store, built))


def _verdict_of(context: BuildContext, store: Images) -> dict[str, Any] | None:
    """Return the verdict on an image whose record went with its SIF."""
    said = store.document(context.identity, provenance.FILE)
    return None if said is None else provenance.verdict_in(said)


def _sbom_of(context: BuildContext, store: Images, built: Built) -> str | None:
    """Return the image's bill of materials: the stored one, or else one that is made now."""
    if not context.settings.proof.sbom:
        return None
    kept = store.document(context.identity, sbom.FILE)
    if kept is not None:
        return kept
    lock = json.loads(store.document(context.identity, lockfile.FILE) or "{}")
    installed = evidence.installed_in(context, built.image, lock)
    made = evidence.bill_of_materials(context, installed, lock, is_slim=built.is_slim)
    documents = evidence.documents(context, dataclasses.replace(built, sbom=made))
    store.keep_documents(context.identity, documents)
    return made


def _keep_documents_of(context: BuildContext, store: Images, image: str) -> None:
    """Keep the recipe and the lockfile of an image from elsewhere.

    Equal inputs render equally, so its recipe is this one's; the image has its lockfile.
    """
    if not store.documents(context.identity):
        rendered = render_request(context.request, context.inputs, context.settings)
        lock = daemon.read_file(image, f"{RECORD_FOLDER}/spack.lock", MAX_LOCK_BYTES)
        store.keep_documents(context.identity, rendered.documents(lock))
