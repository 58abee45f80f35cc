"""Puts beside a pushed image what proves it: its signature, and signed statements about it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from image_builder.build import evidence
from image_builder.build.context import BuildContext, Built
from image_builder.docker import registry
from image_builder.plan.image_name import without_owner
from image_builder.proof import cosign, provenance, sbom
from image_builder.proof.keys import Signer
from image_builder.store.image_store import open_repository
from image_builder.store.oci_client import OciRepository, beside_tag
from image_builder.store.registry import PutBeside


def beside_sifs(signer: Signer | None) -> PutBeside | None:
    """Return what signs SIFs in a registry, where the service has a key."""
    if signer is None:
        return None

    def sign(repository: OciRepository, digest: str) -> None:
        name = f"{repository.host}/{repository.name}"
        signature = cosign.signature_of(name, digest, signer)
        _put_beside(repository, digest, cosign.SIGNATURES, [signature])

    return sign


def sign_pushed(context: BuildContext, built: Built, digest: str, *, lock: str | None) -> None:
    """Sign the image that has this digest in the registry, where the service has a key.

    It comes before the image gets its name. Raises `Unavailable` when the registry does not take it.
    """
    signer = context.signer
    if signer is None:
        return
    name, address = (
        of(context.inputs.image_id) for of in (registry.repository_of, registry.registry_address)
    )
    repository = open_repository(address, context.settings.build, context.settings.registry)
    statements = list(
        _statements(context, built, signer, provenance.of_digest(without_owner(name), digest), lock)
    )
    if statements:
        _put_beside(repository, digest, cosign.STATEMENTS, statements)
    _put_beside(repository, digest, cosign.SIGNATURES, [cosign.signature_of(name, digest, signer)])
    context.observer.line(f"Signed {name}@{digest}")


def _statements(
    context: BuildContext,
    built: Built,
    signer: Signer,
    subject: provenance.Resource,
    lock: str | None,
) -> Iterator[cosign.Layer]:
    """Yield what is stated about a pushed image: what is in it, and how it came about.

    Neither has a time in it, so that an image that is pushed again gets no second one.
    """
    stated = {}
    if built.sbom is not None:
        predicate = json.loads(built.sbom)
        stated[sbom.PREDICATE_TYPE] = provenance.stated(sbom.PREDICATE_TYPE, predicate, [subject])
    if context.settings.proof.provenance:
        origin = evidence.origin(context, built, lock)
        stated[provenance.PREDICATE_TYPE] = provenance.statement(origin, [subject])
    for predicate_type, text in stated.items():
        envelope = signer.envelope(provenance.MEDIA_TYPE, text.encode())
        yield cosign.attestation_of(envelope, predicate_type)


def _put_beside(
    repository: OciRepository, digest: str, kind: str, layers: list[cosign.Layer]
) -> None:
    """Add layers to the artifact of an image, which the layers of others stay in."""
    tag = beside_tag(digest, kind)
    earlier = repository.manifest(tag)
    described = [layer.descriptor(repository.put_blob(layer.content)) for layer in layers]
    together = cosign.with_layers(earlier.layers if earlier else [], described)
    config = repository.put_blob(cosign.config(together))
    repository.put_manifest(tag, cosign.manifest(together, config))
