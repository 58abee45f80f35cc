"""What is beside a pushed image, as cosign's specifications have it."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from securesystemslib.exceptions import VerificationError

from image_builder.docker.registry import registry_address
from image_builder.proof import cosign, provenance
from image_builder.proof.keys import read_signer
from image_builder.store.oci_client import beside_tag
from tests.support.signing import make_key, read_statement

DIGEST = f"sha256:{'1' * 64}"


def test_openssl_verifies_the_signature_of_the_payload(tmp_path: Path) -> None:
    """As `cosign verify --key` does for ECDSA: the signature is of the payload as it is stored."""
    signer = read_signer(make_key(tmp_path / "key.pem", "p256"))
    signed = cosign.signature_of("registry.example.org/group/image", DIGEST, signer)
    (tmp_path / "key.pub").write_text(signer.public_pem)
    (tmp_path / "payload").write_bytes(signed.content)
    signature = signed.annotations["dev.cosignproject.cosign/signature"]
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    command = "openssl dgst -sha256 -verify key.pub -signature signature payload"
    assert subprocess.run(command.split(), cwd=tmp_path, capture_output=True).returncode == 0
    assert json.loads(signed.content) == {
        "critical": {
            "identity": {"docker-reference": "registry.example.org/group/image"},
            "image": {"docker-manifest-digest": DIGEST},
            "type": "cosign container image signature",
        },
        "optional": None,
    }


@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_another_implementation_verifies_a_statement_in_its_envelope(
    tmp_path: Path, kind: str
) -> None:
    """As `cosign verify-attestation --key` does: DSSE, and in it in-toto's statement of the image."""
    signer = read_signer(make_key(tmp_path / "key.pem", kind))
    subject = provenance.of_digest("registry.example.org/group/image", DIGEST)
    text = provenance.stated("https://spdx.dev/Document", {"spdxVersion": "SPDX-2.3"}, [subject])
    envelope = signer.envelope(provenance.MEDIA_TYPE, text.encode())
    layer = cosign.attestation_of(envelope, "https://spdx.dev/Document")

    statement = read_statement(layer.content, signer.public_pem)
    assert statement["predicateType"] == layer.annotations["predicateType"]
    assert statement["subject"][0]["digest"] == {"sha256": "1" * 64}
    assert layer.annotations["dev.cosignproject.cosign/signature"] == ""
    other = read_signer(make_key(tmp_path / "other.pem", kind))
    with pytest.raises(VerificationError):
        read_statement(layer.content, other.public_pem)


def test_layers_of_others_stay_and_ours_are_there_once() -> None:
    ours, other = {"digest": "sha256:a"}, {"digest": "sha256:b"}
    assert cosign.with_layers([], [ours]) == [ours]
    assert cosign.with_layers([other], [ours]) == [other, ours]
    assert cosign.with_layers([other, ours], [ours]) == [other, ours]
    many = [{"digest": f"sha256:{number}"} for number in range(cosign.MOST_LAYERS + 5)]
    assert cosign.with_layers(many, [ours]) == [*many[5:], ours]
    assert json.loads(cosign.config([other, ours]))["rootfs"]["diff_ids"] == [
        "sha256:b",
        "sha256:a",
    ]


def test_the_tag_follows_from_the_digest_and_the_address_from_the_name() -> None:
    assert beside_tag(DIGEST, cosign.SIGNATURES) == f"sha256-{'1' * 64}.sig"
    assert beside_tag(DIGEST, cosign.STATEMENTS) == f"sha256-{'1' * 64}.att"
    assert registry_address("127.0.0.1:5000/group/image:tag") == "127.0.0.1:5000/group/image"
    assert registry_address("somebody/image:tag") == "registry-1.docker.io/somebody/image"
