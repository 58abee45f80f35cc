"""The signature of a pushed image, as cosign's specification has it."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

from image_builder.docker.registry import registry_address
from image_builder.proof import cosign
from image_builder.proof.keys import read_signer
from tests.support.signing import make_key

DIGEST = f"sha256:{'1' * 64}"


def test_openssl_verifies_the_signature_of_the_payload(tmp_path: Path) -> None:
    """As `cosign verify --key` does for ECDSA: the signature is of the payload as it is stored."""
    signer = read_signer(make_key(tmp_path / "key.pem", "p256"))
    signed = cosign.signature_of("registry.example.org/group/image", DIGEST, signer)
    (tmp_path / "key.pub").write_text(signer.public_pem)
    (tmp_path / "payload").write_bytes(signed.payload)
    (tmp_path / "signature").write_bytes(base64.b64decode(signed.signature))
    command = "openssl dgst -sha256 -verify key.pub -signature signature payload"
    assert subprocess.run(command.split(), cwd=tmp_path, capture_output=True).returncode == 0
    assert json.loads(signed.payload) == {
        "critical": {
            "identity": {"docker-reference": "registry.example.org/group/image"},
            "image": {"docker-manifest-digest": DIGEST},
            "type": "cosign container image signature",
        },
        "optional": None,
    }


def test_signatures_of_others_stay_and_ours_is_there_once() -> None:
    ours, other = {"digest": "sha256:a"}, {"digest": "sha256:b"}
    assert cosign.with_layer(None, ours) == [ours]
    assert cosign.with_layer({"layers": [other]}, ours) == [other, ours]
    assert cosign.with_layer({"layers": [other, ours]}, ours) == [other, ours]
    assert json.loads(cosign.config([other, ours]))["rootfs"]["diff_ids"] == [
        "sha256:b",
        "sha256:a",
    ]


def test_the_tag_follows_from_the_digest_and_the_address_from_the_name() -> None:
    assert cosign.tag_of(DIGEST) == f"sha256-{'1' * 64}.sig"
    assert registry_address("127.0.0.1:5000/group/image:tag") == "127.0.0.1:5000/group/image"
    assert registry_address("somebody/image:tag") == "registry-1.docker.io/somebody/image"
