"""Defines the record of a finished image, and the names that an image may have."""

from __future__ import annotations

import datetime
import hashlib
import re
import sys
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MAX_FILENAME = 255
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.sif")
_SHA256 = re.compile(r"[0-9a-f]{64}")


PUSHED_AS = "pushed_as"
"""The detail with what this service pushed, as `docker pull` takes it: repository and digest."""


COMPRESSOR = "sif_compressor"
"""The detail that says how the SIF's files are compressed."""


SIGNED = "signed"
"""The detail that says whether the SIF was signed as it was made."""

SUBMITTED_AT = "submitted_at"
"""The detail that says when the image was requested, in seconds since 1970."""


IMAGE_BYTES = "image_bytes"
"""The detail with the size of the image in Docker, unpacked, with the layers that it shares."""


class ImageRecord(BaseModel):
    """Holds what is known of a finished image.

    Images for the docker engine have no `sha256`, `size_bytes` and `filename`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str = Field(pattern=r"^(sha256:)?[0-9a-f]{64}$")
    image_id: str
    platform: str
    filename: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    created: datetime.datetime = Field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc)
    )
    details: dict[str, Any] = Field(default_factory=dict)
    """Free for the audit's verdict, the request, the recipe, how it was converted, …"""


def with_sif_of(earlier: ImageRecord | None, record: ImageRecord) -> ImageRecord:
    """Return the record with the SIF that the identity has already, if it has one."""
    if earlier is None or earlier.sha256 is None:
        return record
    kept = earlier.model_dump(include={"sha256", "size_bytes", "filename"})
    return record.model_copy(update=kept)


def was_asked_later(record: ImageRecord | None, other: ImageRecord) -> bool:
    """Return whether a name's record stays, as its image was requested after `other`.

    A slow build of an earlier `latest` ends after a quick one of a newer.
    """
    return record is not None and _submitted_at(record) > _submitted_at(other)


def may_take_name(owner: ImageRecord | None, record: ImageRecord) -> bool:
    """Return whether the record's identity may own a name of Docker images instead of `owner`."""
    return owner is None or owner.identity == record.identity or not was_asked_later(owner, record)


def _submitted_at(record: ImageRecord) -> float:
    value = record.details.get(SUBMITTED_AT)
    return float(value) if isinstance(value, (int, float)) else 0.0


def shortened(record: ImageRecord) -> ImageRecord:
    """Return the record with no more details than lists of thousands keep in memory: the labels."""
    labels = {sys.intern(key): value for key, value in (record.details.get("labels") or {}).items()}
    return record.model_copy(update={"details": {"labels": labels} if labels else {}})


def is_filename(name: str) -> bool:
    """Return whether this may be the name of a SIF: one plain path component."""
    return len(name) <= MAX_FILENAME and _FILENAME.fullmatch(name) is not None


def checked_filename(name: str | None) -> str:
    """Return the name if it may be the name of a SIF. Raises `ValueError`."""
    if name is None or not is_filename(name):
        raise ValueError(f"{str(name)[:300]!r} cannot be the name of a SIF")
    return name


def is_sha256(text: str) -> bool:
    """Return whether a text is a sha256 in hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def name_digest(image_id: str) -> str:
    """Return the digest by which a store finds the name of a Docker image."""
    return hashlib.sha256(image_id.encode()).hexdigest()


def identity_digest(identity: str) -> str:
    """Return an identity without the `sha256:` that it may begin with."""
    return identity.removeprefix("sha256:")
