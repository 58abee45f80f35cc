"""What is known of a base image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """What the planner has to know of a base image; a None was not found out, or is not there."""

    reference: str
    digest: str | None
    platform: str
    os_id: str
    os_version: str
    spack_version: tuple[int, ...] | None
    compilers: Mapping[str, str]
    python: str | None
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The environment that its containers start with."""
    folder: str = ""
    """Where its containers start."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
