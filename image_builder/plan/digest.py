"""Digests of plain values, as identities and cache keys are made of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Return a value as JSON that is the same for equal values.

    Identities, keys and signatures are made of these bytes: another form would lose every stored
    image.
    """
    return json.dumps(value, sort_keys=True).encode()


def json_digest(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
