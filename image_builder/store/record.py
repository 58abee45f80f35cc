"""The record of a finished image, and the names that it may have."""

from __future__ import annotations

import datetime
import re
import sys
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MAX_FILENAME = 255
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.sif")
_SHA256 = re.compile(r"[0-9a-f]{64}")


PUSHED_AS = "pushed_as"
"""The detail that says what this service pushed: a repository and a digest, as `docker pull` takes
them.
"""


class ImageRecord(BaseModel):
    """What is known of a finished image. Images for the docker engine have no `sha256`,
    `size_bytes` and `filename`.
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


def shortened(record: ImageRecord) -> ImageRecord:
    """What of a record is worth its place in memory, thousands of times."""
    labels = {sys.intern(key): value for key, value in (record.details.get("labels") or {}).items()}
    return record.model_copy(update={"details": {"labels": labels} if labels else {}})


def is_filename(name: str) -> bool:
    """Whether this may be the name of a SIF: one path component without any trick."""
    return len(name) <= MAX_FILENAME and _FILENAME.fullmatch(name) is not None


def checked_filename(name: str | None) -> str:
    """The name, if it may be one of a SIF; else `ValueError`."""
    if name is None or not is_filename(name):
        raise ValueError(f"{str(name)[:300]!r} cannot be the name of a SIF")
    return name


def is_sha256(text: str) -> bool:
    """Whether this is a sha256, as text."""
    return _SHA256.fullmatch(text) is not None


def identity_digest(identity: str) -> str:
    """An identity without the word that it may begin with."""
    return identity.removeprefix("sha256:")
