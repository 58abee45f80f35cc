"""Makes digests of plain values, for identities and cache keys."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Return a value as JSON that is the same for equal values.

    Identities, keys and signatures are made of these bytes: another form would change the identity
    of every stored image.
    """
    return json.dumps(value, sort_keys=True).encode()


def json_digest(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
