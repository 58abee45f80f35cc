"""Reads the service's key, signs with it, and verifies: Ed25519, or ECDSA on P-256.

Signatures are DSSE envelopes. Equal texts get equal envelopes of a length that depends on the text's
alone: ECDSA takes its random number from the message (RFC 6979). A token's ECDSA takes one of its
own.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from image_builder.errors import Misconfigured
from image_builder.proof import tokens
from image_builder.proof.tokens import PublicKey
from image_builder.settings import ProofSettings, TokenKey

MAX_KEY_BYTES = 64 * 1024
LONGEST_SIGNATURE_BYTES = 72
"""That of ECDSA on P-256 in DER; Ed25519's has 64 bytes always."""
HOW_TO_MAKE = "Make one: openssl genpkey -algorithm ed25519 -out key.pem && chmod 600 key.pem"

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs with one private key, which is never shown."""

    public_pem: str
    """The public key, as it is published."""
    sign: Callable[[bytes], bytes] = dataclasses.field(repr=False)
    """Returns the signature of a message; for ECDSA that of its SHA-256, in DER."""

    def envelope(self, payload_type: str, payload: bytes) -> bytes:
        """Return a DSSE envelope with a payload and its signature.

        It ends in as many line ends as make its length depend on the payload's alone. It names no
        key: whoever verifies it tries those that are trusted.
        """
        signature = self.sign(pre_authentication_encoding(payload_type, payload))
        longest = len(_envelope(payload_type, payload, bytes(LONGEST_SIGNATURE_BYTES)))
        return _envelope(payload_type, payload, signature).ljust(longest, b"\n")


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return what DSSE signs: the payload with its type, each with its length."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def _envelope(payload_type: str, payload: bytes, signature: bytes) -> bytes:
    content = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(content, separators=(",", ":")).encode()


def opened(envelope: bytes, payload_type: str, public_pem: str) -> bytes | None:
    """Return the payload of an envelope that the key signed, or None for any other text.

    Only what `Signer.envelope` writes is taken, to the last byte.
    """
    try:
        content = json.loads(envelope)
        payload = base64.b64decode(content["payload"], validate=True)
        signature = base64.b64decode(content["signatures"][0]["sig"], validate=True)
        written = _envelope(payload_type, payload, signature)
        longest = len(_envelope(payload_type, payload, bytes(LONGEST_SIGNATURE_BYTES)))
        key = _public_key(public_pem.encode())
        message = pre_authentication_encoding(payload_type, payload)
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, InvalidSignature):
        return None
    return payload if written.ljust(longest, b"\n") == envelope else None


def read_signer(key: Path | TokenKey) -> Signer:
    """Read the private key of a file that nobody else may read, or find that of a token.

    Raises `Misconfigured`.
    """
    if isinstance(key, Path):
        return _signer_of_file(key)
    pin = None
    if key.pin_file is not None:
        pin = _read(key.pin_file, is_private=True).decode("utf-8", "replace").rstrip("\r\n")
    return Signer(
        public_pem=_pem(tokens.public_key(key, pin)), sign=functools.partial(tokens.sign, key, pin)
    )


def signer_of(settings: ProofSettings) -> Signer | None:
    """Return what signs with these settings, or None without a key. Raises `Misconfigured`."""
    return None if settings.key is None else read_signer(settings.key)


def _signer_of_file(path: Path) -> Signer:
    raw = _read(path, is_private=True)
    try:
        key = serialization.load_pem_private_key(raw, password=None)
    except TypeError:
        raise Misconfigured(
            f"The key {path} is encrypted.",
            hint="Write it without a password: openssl pkey -in KEY -out key.pem",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise Misconfigured(
            f"The file {path} holds no private key in PEM.", hint=HOW_TO_MAKE
        ) from None
    if not isinstance(key, PrivateKey) or not _is_known(key.public_key()):
        raise Misconfigured(
            f"The key {path} is neither Ed25519 nor ECDSA on P-256.", hint=HOW_TO_MAKE
        )
    return Signer(public_pem=_pem(key.public_key()), sign=functools.partial(_sign, key))


def _sign(key: PrivateKey, message: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def read_public_keys(path: Path) -> list[str]:
    """Return the public keys of a file, one or several in PEM. Raises `Misconfigured`."""
    raw = _read(path, is_private=False)
    end = b"-----END PUBLIC KEY-----"
    blocks = [block + end for block in raw.split(end)[:-1]]
    try:
        keys = [_pem(_public_key(block[block.index(b"-----BEGIN") :])) for block in blocks]
    except (ValueError, UnsupportedAlgorithm):
        keys = []
    if not keys:
        raise Misconfigured(
            f"The file {path} holds no public keys of Ed25519 or ECDSA on P-256, in PEM.",
            hint="Write them with: openssl pkey -in OLD_KEY -pubout",
        )
    return keys


def published(settings: ProofSettings) -> list[str]:
    """Return the public keys that verify what this service signed: the present one, then old ones.

    There are none without a key. Raises `Misconfigured`.
    """
    signer = signer_of(settings)
    present = [] if signer is None else [signer.public_pem]
    old = [] if settings.old_public_keys is None else read_public_keys(settings.old_public_keys)
    return list(dict.fromkeys(present + old))


def _read(path: Path, *, is_private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise Misconfigured(f"{path} is no file.", hint=HOW_TO_MAKE)
            if is_private and about.st_mode & 0o077:
                raise Misconfigured(
                    f"Others may read the key {path} (mode {stat.S_IMODE(about.st_mode):04o}).",
                    hint=f"Run chmod 600 {path}; if others had access to it, make a new key.",
                )
            raw = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Misconfigured(
            f"The key {path} cannot be read: {reason}.",
            hint="Let the service's user own it, with mode 600, or take it out of proof_cfg.",
        ) from None
    if len(raw) > MAX_KEY_BYTES:
        raise Misconfigured(f"{path} is too large to be a key.", hint=HOW_TO_MAKE)
    return raw


def _public_key(pem: bytes) -> PublicKey:
    key = serialization.load_pem_public_key(pem)
    if not isinstance(key, PublicKey) or not _is_known(key):
        raise ValueError("a key of another kind")
    return key


def _is_known(key: PublicKey) -> bool:
    return isinstance(key, ed25519.Ed25519PublicKey) or isinstance(key.curve, ec.SECP256R1)


def _pem(key: PublicKey) -> str:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
