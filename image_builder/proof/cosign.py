"""Makes what cosign reads beside a pushed image: its signature, and signed statements about it. Pure.

Each kind is an artifact in the image's own repository, whose tag follows from the image's digest:
`cosign verify --key` reads the one, `cosign verify-attestation --key` the other. A layer of a
signature is a small text about the image, and an annotation of the layer is a signature of it; a layer
of the others is a statement in an envelope with its signature.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from image_builder.proof.keys import Signer

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
SIGNATURE_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
PREDICATE_TYPE = "predicateType"
SIGNATURES, STATEMENTS = "sig", "att"
"""The kinds of artifacts, as tags end."""
MOST_LAYERS = 100
"""How many layers of others are kept beside ours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """Holds a layer of an artifact, and what its descriptor says, but for size and digest."""

    content: bytes
    media_type: str
    annotations: Mapping[str, str]

    def descriptor(self, blob: Mapping[str, Any]) -> dict[str, Any]:
        """Return the layer's descriptor; `blob` is what the registry says of the content."""
        return {"mediaType": self.media_type, **blob, "annotations": dict(self.annotations)}


def signature_of(repository: str, digest: str, signer: Signer) -> Layer:
    """Return the signature of the image that has this digest in a repository."""
    content = {
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    payload = json.dumps(content, separators=(",", ":")).encode()
    return Layer(
        content=payload,
        media_type=SIGNATURE_TYPE,
        annotations={SIGNATURE: base64.b64encode(signer.sign(payload)).decode()},
    )


def attestation_of(envelope: bytes, predicate_type: str) -> Layer:
    """Return a statement about an image, in its envelope, as what stands beside the image."""
    return Layer(
        content=envelope,
        media_type=ENVELOPE_TYPE,
        annotations={SIGNATURE: "", PREDICATE_TYPE: predicate_type},
    )


def with_layers(known: list[dict[str, Any]], layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the layers of an artifact with more, but for those that are there; others' stay."""
    fresh = [layer for layer in layers if layer not in known]
    return [*known[-MOST_LAYERS:], *fresh] if fresh else known


def config(layers: list[Any]) -> bytes:
    """Return the configuration of an artifact with these layers."""
    content = {
        "architecture": "",
        "config": {},
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    return json.dumps(content, sort_keys=True).encode()


def manifest(layers: list[Any], config_blob: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of an artifact; `config_blob` is what the registry says of its config."""
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": CONFIG_TYPE, **config_blob},
        "layers": layers,
    }
