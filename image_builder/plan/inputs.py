"""What a request names, pinned: nothing that the build uses can move from here on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from image_builder.docker.base_image import BaseFacts
from image_builder.sources.software_catalogue import PinnedCatalogue
from image_builder.sources.step import StepRef


class Inputs(BaseModel):
    """A request's inputs, pinned. `identity` is None while the base image cannot be reached."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    step: StepRef
    catalogue: PinnedCatalogue
    base: BaseFacts
    runtime: BaseFacts | None = None
    """What a slim image is put on; None: a full image is built."""
    full_because: str = ""
    """Why a full image is built though a slim one was asked for."""
    branch_commits: dict[str, str]
    recipe_version: str
    image_id: str
    filename: str | None
    identity: str | None
    push: bool
    warnings: tuple[str, ...]
