"""The service's key: what is refused of its file, and what is signed with it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from image_builder.errors import Misconfigured
from image_builder.proof import keys
from image_builder.proof.keys import Signer, opened, read_public_keys, read_signer
from image_builder.settings import ProofSettings
from tests.support.signing import make_key

TYPE = "application/vnd.in-toto+json"
kinds = pytest.mark.parametrize("kind", ["ed25519", "p256"])


def made(folder: Path, kind: str) -> Signer:
    return read_signer(make_key(folder / "key.pem", kind))


@kinds
def test_an_envelope_opens_with_the_key_that_signed_it(tmp_path: Path, kind: str) -> None:
    signer = made(tmp_path, kind)
    envelope = signer.envelope(TYPE, b"payload")
    assert opened(envelope, TYPE, signer.public_pem) == b"payload"
    assert opened(envelope, "text/plain", signer.public_pem) is None
    other = read_signer(make_key(tmp_path / "other.pem", kind))
    assert opened(envelope, TYPE, other.public_pem) is None


@kinds
def test_equal_texts_get_equal_envelopes_of_equal_length(tmp_path: Path, kind: str) -> None:
    signer = made(tmp_path, kind)
    assert signer.envelope(TYPE, b"x") == signer.envelope(TYPE, b"x")
    lengths = {len(signer.envelope(TYPE, b"%04d" % number)) for number in range(200)}
    assert len(lengths) == 1


@kinds
def test_no_flipped_bit_opens(tmp_path: Path, kind: str) -> None:
    signer = made(tmp_path, kind)
    envelope = signer.envelope(TYPE, b"payload of some bytes")
    for place in range(len(envelope)):
        for bit in (1, 32):
            changed = bytearray(envelope)
            changed[place] ^= bit
            assert opened(bytes(changed), TYPE, signer.public_pem) is None, (place, bit)


@kinds
def test_openssl_accepts_the_signature(tmp_path: Path, kind: str) -> None:
    """OpenSSL knows nothing of ours: it gets the key, what DSSE says is signed, and the signature."""
    signer = made(tmp_path, kind)
    content = json.loads(signer.envelope(TYPE, b"payload"))
    (tmp_path / "key.pub").write_text(signer.public_pem)
    (tmp_path / "signature").write_bytes(base64.b64decode(content["signatures"][0]["sig"]))
    (tmp_path / "signed").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json 7 payload")
    command = {
        "ed25519": "pkeyutl -verify -pubin -inkey key.pub -rawin -in signed -sigfile signature",
        "p256": "dgst -sha256 -verify key.pub -signature signature signed",
    }[kind]
    done = subprocess.run(["openssl", *command.split()], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    path = make_key(tmp_path / "key.pem", "ed25519")
    secret = path.read_text().splitlines()[1]
    assert secret not in repr(read_signer(path)) + str(read_signer(path))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o601, 0o777])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = make_key(tmp_path / "key.pem", "ed25519")
    path.chmod(mode)
    with pytest.raises(Misconfigured, match=f"mode {mode:04o}") as caught:
        read_signer(path)
    assert f"chmod 600 {path}" in caught.value.hint


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "neither Ed25519 nor ECDSA"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384", "neither Ed25519 nor ECDSA"),
        ("genpkey -algorithm X25519", "neither Ed25519 nor ECDSA"),
        ("genpkey -algorithm ed25519 -aes256 -pass pass:canary", "is encrypted"),
    ],
)
def test_what_is_no_key_of_ours_is_refused_with_what_to_do(
    tmp_path: Path, command: str, reason: str
) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    subprocess.run(["openssl", *command.split(), "-out", str(path)], check=True)
    with pytest.raises(Misconfigured, match=reason) as caught:
        read_signer(path)
    assert "openssl" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "reason"), [(b"noise" * 20, "no private key"), (bytes(100_000), "too large")]
)
def test_noise_is_no_key(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match=reason):
        read_signer(path)


@pytest.mark.parametrize("what", ["nothing", "folder", "pipe", "empty"])
def test_a_key_that_cannot_be_read_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "key.pem"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path, 0o600)
    elif what == "empty":
        path.touch(mode=0o600)
    with pytest.raises(Misconfigured, match=str(path)) as caught:
        read_signer(path)
    assert caught.value.hint


def test_the_present_key_is_published_before_old_ones(tmp_path: Path) -> None:
    names = ("new", "old", "older")
    signers = [read_signer(make_key(tmp_path / f"{name}.pem", "ed25519")) for name in names]
    old = tmp_path / "old.pub"
    old.write_text("".join(f"Comment\n{one.public_pem}" for one in reversed(signers)))
    settings = ProofSettings(key=tmp_path / "new.pem", old_public_keys=old)
    assert keys.published(settings) == [signers[index].public_pem for index in (0, 2, 1)]
    assert keys.published(ProofSettings()) == []


@pytest.mark.parametrize(
    "text", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_a_file_without_public_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old.pub"
    path.write_text(text)
    with pytest.raises(Misconfigured, match="no public keys") as caught:
        read_public_keys(path)
    assert "-pubout" in caught.value.hint


def test_a_private_key_is_not_published_as_a_public_one(tmp_path: Path) -> None:
    path = make_key(tmp_path / "key.pem", "ed25519")
    with pytest.raises(Misconfigured, match="no public keys"):
        read_public_keys(path)
