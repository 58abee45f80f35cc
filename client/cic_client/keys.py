"""Read a service's public keys, and check signatures with them: Ed25519, or ECDSA on P-256.

It needs the package `cryptography`, which the client does without for everything else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cic_client.errors import BadInput, ClientError

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
except ImportError:
    HAS_CRYPTOGRAPHY = False
else:
    HAS_CRYPTOGRAPHY = True

if TYPE_CHECKING:
    PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
else:
    PublicKey = object

MAX_KEYS = 100
MAX_KEYS_CHARACTERS = 1024**2
_BLOCK = re.compile("-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\\s]{1,10000}-----END PUBLIC KEY-----")


def read(text: str) -> list[PublicKey | None]:
    """Return the public keys in a text, one behind the other in PEM, None for those of other kinds.

    Raises `BadInput` if there are none, and `ClientError`
    without the package `cryptography`.
    """
    if not HAS_CRYPTOGRAPHY:
        raise ClientError(
            "Signatures need another package: pip install cryptography, "
            "or use cic_cli verify, which needs openssl."
        )
    blocks = _BLOCK.findall(text[:MAX_KEYS_CHARACTERS])[:MAX_KEYS]
    if not blocks:
        raise BadInput("There are no public keys in PEM: fetch those at the service's /key/.")
    return [_key(block) for block in blocks]


def _key(block: str) -> PublicKey | None:
    try:
        key = serialization.load_pem_public_key(block.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    is_known = isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    )
    return key if is_known else None  # type: ignore[return-value]


def is_signed_with(key: PublicKey | None, signature: bytes, message: bytes) -> bool:
    """Return whether the key made the signature of a message."""
    if key is None:
        return False
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
