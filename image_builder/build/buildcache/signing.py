"""Signs the entries of the build cache and verifies their signatures."""

from __future__ import annotations

import dataclasses
import hmac

from pydantic import SecretStr

from image_builder.build.buildcache.mirror import PackageEntry
from image_builder.plan.digest import canonical_json

SIGNATURE_VERSION = 1


class Signer:
    """Signs the entries of one cache with the first of the keys, and verifies with each."""

    def __init__(self, keys: SecretStr, *, cache: str) -> None:
        self._keys = [key.encode() for key in keys.get_secret_value().split()]
        self._cache = cache

    def sign(self, entry: PackageEntry) -> str:
        return self._signature(self._keys[0], entry)

    def verify(self, entry: PackageEntry, signature: str | None) -> bool:
        return signature is not None and any(
            hmac.compare_digest(self._signature(key, entry).encode(), signature.encode())
            for key in self._keys
        )

    def _signature(self, key: bytes, entry: PackageEntry) -> str:
        signed = {"version": SIGNATURE_VERSION, "cache": self._cache, **dataclasses.asdict(entry)}
        return hmac.new(key, canonical_json(signed), "sha256").hexdigest()
