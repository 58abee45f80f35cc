"""Holds what a request names, pinned: nothing that the build uses can change from here on."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from image_builder.docker.base_image import BaseFacts
from image_builder.plan.relock import Relock
from image_builder.sources.software_catalogue import PinnedCatalogue
from image_builder.sources.step import StepRef


class Inputs(BaseModel):
    """Holds a request's pinned inputs; `identity` is None until the base image is reached."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    step: StepRef
    catalogue: PinnedCatalogue
    base: BaseFacts
    runtime: BaseFacts | None = None
    """The image that a slim image is built on; None if a full image is built."""
    full_because: str = ""
    """Why a full image is built although a slim one is requested."""
    branch_commits: dict[str, str]
    recipe_version: str
    image_id: str
    filename: str | None
    identity: str | None
    push: bool
    warnings: tuple[str, ...]
    relock: Relock | None = None
    """What is installed in place of what Spack, apt and pip would choose; None for most builds."""
    submitted_at: float = 0.0
    """When this was pinned, in seconds since 1970; names follow this order."""
    bundle: Path | None = None
    """The folder of an unpacked bundle, which stands for every server; None: what is fetched comes
    from the network."""
    lock: str | None = None
    """The `spack.lock` to install, as it was decided when the bundle was made."""
