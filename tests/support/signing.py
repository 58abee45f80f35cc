"""Make keys and signed SIFs for tests: the keys as operators make them, the SIFs without an image.

What is signed is read here with the code of others.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from image_builder.proof import provenance, sbom
from image_builder.proof.keys import Signer, read_signer
from image_builder.proof.provenance import Origin, Resource
from image_builder.sif import format
from image_builder.sif.format import DataType, Digests, Object

ALGORITHMS = {
    "ed25519": ("-algorithm", "ed25519"),
    "p256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
}
GROUP = format.NO_GROUP | 1
SMALL = (
    Object(data_type=DataType.DEFINITION, content=b"bootstrap: x\n", group=GROUP),
    Object(data_type=DataType.GENERIC_JSON, content=b"{}", name="oci-config.json", group=GROUP),
)
BILL = b'{"spdxVersion": "SPDX-2.3"}\n'
ORIGIN = Origin(
    request={"workflow": "demo", "step_id": "hello"},
    identity=f"sha256:{'1' * 64}",
    recipe="1",
    is_slim=False,
    materials=[Resource(name="step", digest={"gitTree": "2" * 40})],
    builder_id="urn:cic:builder",
    byproducts=[],
)


def flipped(content: bytes, place: int, bit: int = 0) -> bytes:
    """Return the content with one bit changed."""
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def signed_folder(folder: Path, kind: str) -> Path:
    """Put a signed image into a folder, its private key, and the public key for it."""
    signer = read_signer(make_key(folder / "key.pem", kind))
    (folder / "keys.pem").write_text(signer.public_pem)
    signed_sif(folder / "image.sif", signer)
    return folder


def mixed_with_another(folder: Path, other: Path) -> list[tuple[object, bytes]]:
    """Return the signed image of a folder with each part, in turn, of another one of its key."""
    foreign = signed_sif(other, read_signer(folder / "key.pem")).read_bytes()
    content = (folder / "image.sif").read_bytes()
    tampered: list[tuple[object, bytes]] = []
    for one in format.read(folder / "image.sif").descriptors:
        end = one.offset + one.size_bytes
        if content[one.offset : end] != foreign[one.offset : end]:
            mixed = content[: one.offset] + foreign[one.offset : end] + content[end:]
            tampered.append((one.id, mixed))
    assert len(tampered) == 3  # the statement, the signature and the squashfs
    return tampered


def make_key(path: Path, kind: str) -> Path:
    """Make a private key with openssl, which nobody else may read."""
    subprocess.run(
        ["openssl", "genpkey", *ALGORITHMS[kind], "-out", str(path)],
        check=True,
        capture_output=True,
    )
    path.chmod(0o600)
    return path


class SignedEvidence:
    """What a SIF says about itself, of a fixed origin."""

    def __init__(self, signer: Signer, bill: bytes = BILL) -> None:
        self.signer, self.bill = signer, bill

    def first(self) -> Sequence[Object]:
        return [
            Object(
                data_type=DataType.SBOM,
                content=self.bill,
                name=sbom.FILE,
                extra=format.SPDX_JSON,
            )
        ]

    def last(self, digests: Digests) -> Sequence[Object]:
        parts = {"head": digests.head, "squashfs": digests.squashfs, **digests.objects}
        subjects = [
            Resource(name=name, digest={"sha256": digest}) for name, digest in parts.items()
        ]
        text = provenance.statement(ORIGIN, subjects).encode()
        return [
            Object(
                data_type=DataType.GENERIC_JSON,
                content=self.signer.envelope(provenance.MEDIA_TYPE, text),
                name=provenance.SIGNED_FILE,
            )
        ]

    def seal(self, metadata: bytes) -> bytes | None:
        return self.signer.envelope(format.METADATA_TYPE, metadata)


def signed_sif(path: Path, signer: Signer, *, squashfs_bytes: int = 5000) -> Path:
    """Write a SIF that `signer` signed, whose squashfs is noise behind its superblock."""
    squashfs = _noise(path.with_suffix(".squashfs"), squashfs_bytes)
    sif_of(path, squashfs, signer)
    squashfs.unlink()
    return path


def sif_of(path: Path, squashfs: Path, signer: Signer, bill: bytes = BILL) -> Path:
    """Write a SIF of a squashfs, with a bill of materials, that `signer` signed."""
    format.write(
        path,
        architecture="amd64",
        small=SMALL,
        squashfs=squashfs,
        group=GROUP,
        time_s=1_700_000_000,
        evidence=SignedEvidence(signer, bill),
    )
    return path


def _noise(squashfs: Path, squashfs_bytes: int) -> Path:
    superblock = struct.pack(
        "<5I6H8Q", 0x73717368, 42, 0, 131072, 0, 1, 17, 0, 1, 4, 0, 0, squashfs_bytes, *(0,) * 6
    )
    with squashfs.open("wb") as file:
        file.write(superblock)
        left = squashfs_bytes - len(superblock)
        while left > 0:
            left -= file.write(os.urandom(min(left, 1024**2)))
    return squashfs


def openssl_verifies(folder: Path, content: bytes, signature: str, public_pem: str) -> bool:
    """Return whether OpenSSL finds that an ECDSA key signed a content; the signature is in base64."""
    (folder / "judged.pem").write_text(public_pem)
    (folder / "judged.signature").write_bytes(base64.b64decode(signature))
    command = ["openssl", "dgst", "-sha256", "-verify", "judged.pem"]
    judged = subprocess.run(
        [*command, "-signature", "judged.signature"], cwd=folder, input=content, capture_output=True
    )
    return judged.returncode == 0


def read_statement(envelope: bytes, public_pem: str) -> dict[str, Any]:
    """Return the statement in a DSSE envelope: securesystemslib verifies it, and in-toto reads it.

    Raises `VerificationError`.
    """
    opened = Envelope.from_dict(json.loads(envelope))
    known = SSlibKey.from_crypto(serialization.load_pem_public_key(public_pem.encode()))
    unnamed = SSlibKey("", known.keytype, known.scheme, known.keyval)
    opened.verify([unnamed], 1)
    assert opened.payload_type == "application/vnd.in-toto+json"
    parsed = json_format.Parse(opened.payload, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    read: dict[str, Any] = json.loads(opened.payload)
    return read
