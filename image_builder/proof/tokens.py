"""Signs with a key that a PKCS#11 token keeps, such as an HSM or a smart card.

The token is opened for each signature and closed behind it, by one thread at a time: a log-in is the
process's, and ends with its last session. It needs the package python-pkcs11.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Iterator
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from image_builder.errors import Misconfigured
from image_builder.settings import TokenKey

try:
    import pkcs11
except ImportError:
    HAS_PKCS11 = False
else:
    HAS_PKCS11 = True

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
P256 = bytes.fromhex("06082a8648ce3d030107")
"""The name of the curve, as a token has it."""
_ED25519_BYTES, _P256_BYTES = 32, 65
_PROBE = b"a message that is signed once, to see that it can be"
_turn = threading.Lock()


def sign(key: TokenKey, pin: str | None, message: bytes) -> bytes:
    """Return the signature of a message: Ed25519's, or ECDSA's of its SHA-256, in DER.

    Raises `Misconfigured`.
    """
    with _session(key, pin) as session:
        private = _object(session, key, pkcs11.ObjectClass.PRIVATE_KEY)
        if private.key_type == pkcs11.KeyType.EC_EDWARDS:
            return bytes(private.sign(message, mechanism=pkcs11.Mechanism.EDDSA))
        digest = hashlib.sha256(message).digest()
        raw = bytes(private.sign(digest, mechanism=pkcs11.Mechanism.ECDSA))
    half = len(raw) // 2
    return encode_dss_signature(
        int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
    )


@functools.cache
def public_key(key: TokenKey, pin: str | None) -> PublicKey:
    """Return the public key of a token's key, once it has signed something that this verifies.

    Raises `Misconfigured`.
    """
    with _session(key, pin) as session:
        found = _read_public(key, _object(session, key, pkcs11.ObjectClass.PUBLIC_KEY))
    signature = sign(key, pin, _PROBE)
    try:
        if isinstance(found, ed25519.Ed25519PublicKey):
            found.verify(signature, _PROBE)
        else:
            found.verify(signature, _PROBE, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Misconfigured(
            f"On the {key}, the public key is of another key than the private one.",
            hint="Give both keys of a pair the same label, and no other key.",
        ) from None
    return found


@contextlib.contextmanager
def _session(key: TokenKey, pin: str | None) -> Iterator[Any]:
    if not HAS_PKCS11:
        raise Misconfigured(
            "A key on a token needs another package.",
            hint="Install it: pip install -r requirements-pkcs11.txt",
        )
    try:
        with _turn:
            token = pkcs11.lib(str(key.module)).get_token(token_label=key.token)
            with token.open(user_pin=pin) as session:
                yield session
    except pkcs11.NoSuchToken:
        raise Misconfigured(
            f"There is no {key}.", hint="Its label is what token= names in proof_cfg's key."
        ) from None
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked):
        raise Misconfigured(
            f"The {key} does not take the PIN.",
            hint="Write the PIN into the file that pin-source names, and nothing else; "
            "after some wrong ones a token locks itself.",
        ) from None
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
        said = str(error) or type(error).__name__
        raise Misconfigured(
            f"The {key} cannot be used: {said}.",
            hint="Look at it with: pkcs11-tool --module MODULE --list-objects --login",
        ) from None


def _object(session: Any, key: TokenKey, kind: Any) -> Any:
    try:
        return session.get_key(object_class=kind, label=key.object)
    except (pkcs11.NoSuchKey, pkcs11.MultipleObjectsReturned) as error:
        how_many = "no" if isinstance(error, pkcs11.NoSuchKey) else "more than one"
        raise Misconfigured(
            f"On the {key} there is {how_many} {kind.name.lower().replace('_', ' ')} of that label.",
            hint="Both keys of the pair are there under the label that object= names.",
        ) from None


def _read_public(key: TokenKey, found: Any) -> PublicKey:
    """Return a public key; what a token has of it is a point in a wrapping of a few bytes."""
    point = bytes(found[pkcs11.Attribute.EC_POINT])
    with contextlib.suppress(ValueError):
        if found.key_type == pkcs11.KeyType.EC_EDWARDS:
            return ed25519.Ed25519PublicKey.from_public_bytes(point[-_ED25519_BYTES:])
        if bytes(found[pkcs11.Attribute.EC_PARAMS]) == P256:
            return ec.EllipticCurvePublicKey.from_encoded_point(
                ec.SECP256R1(), point[-_P256_BYTES:]
            )
    raise Misconfigured(
        f"The key on the {key} is neither Ed25519 nor ECDSA on P-256.",
        hint="Make one of these on the token.",
    )
