"""Makes the signature of a pushed image in the form that `cosign verify --key` reads. Pure.

It is an artifact in the image's own repository, whose tag follows from the image's digest. Each of
its layers is a small text about the image, and an annotation of the layer is a signature of it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from image_builder.proof.keys import Signer

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
MOST_LAYERS = 100
"""How many signatures of others are kept beside ours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosignSignature:
    """Holds one signature: the text that is signed, and its layer, but for the size and digest."""

    payload: bytes
    signature: str

    def layer(self, blob: Mapping[str, Any]) -> dict[str, Any]:
        """Return the layer's descriptor; `blob` is what the registry says of the payload."""
        return {"mediaType": LAYER_TYPE, **blob, "annotations": {SIGNATURE: self.signature}}


def signature_of(repository: str, digest: str, signer: Signer) -> CosignSignature:
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
    return CosignSignature(
        payload=payload, signature=base64.b64encode(signer.sign(payload)).decode()
    )


def tag_of(digest: str) -> str:
    """Return the tag under which the signatures of an image are."""
    return f"{digest.replace(':', '-')}.sig"


def with_layer(earlier: Mapping[str, Any] | None, layer: Mapping[str, Any]) -> list[Any]:
    """Return the layers of an artifact with one more, unless it is there; others' stay."""
    known = list(earlier.get("layers") or []) if earlier is not None else []
    return known if layer in known else [*known[-MOST_LAYERS:], layer]


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
