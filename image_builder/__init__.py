"""Builds a container image from a workflow step and a target machine, as a library.

It knows neither Flask, nor a database, nor where its settings come from. `docs/architecture.md`
says how its parts work together.
"""

from image_builder.pipeline import BuildResult, Plan, build_image, plan
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from image_builder.sources.own_description import parse_any_request as parse_request

__all__ = [
    "BuildRequest",
    "BuildResult",
    "LibrarySettings",
    "Plan",
    "build_image",
    "parse_request",
    "plan",
]
