"""Pins the images that an image is built on: the base image, and a slim image's own."""

from __future__ import annotations

import dataclasses

from image_builder.docker import base_image, buildx
from image_builder.docker.base_image import BaseFacts
from image_builder.errors import CicError, Misconfigured
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import run
from image_builder.plan.relock import Pins
from image_builder.recipe import slim
from image_builder.request.build_request import BuildRequest
from image_builder.settings import BuildSettings, LibrarySettings

NOT_HERE_YET = "Whether a slim image can be made is found out when the build begins."
"""The warning about a base image that is not on this machine yet, so its facts are unknown."""


@dataclasses.dataclass(frozen=True)
class Pulls:
    """Says that base images missing on this machine are pulled, until `cancel` is set."""

    cancel: CancelToken | None


def pin_base(
    request: BuildRequest, settings: LibrarySettings, pins: Pins | None = None
) -> tuple[BaseFacts, list[str]]:
    """Return what is known of the base image, and warnings; one that is out of reach is one."""
    platform = request.machine.platform
    if pins is not None:
        return look_at(*pins.base, platform, settings, None)
    try:
        return reach_base(request, settings)
    except CicError as error:
        reference = _from_image(request, settings.build) or ""
        return base_image.unprobed_base(reference, None, platform), [str(error)]


def kept_image(
    image: tuple[str, str], request: BuildRequest, settings: LibrarySettings
) -> BaseFacts:
    """Return an image that an earlier build was made on; it may have to be pulled later."""
    return look_at(*image, request.machine.platform, settings, None)[0]


def reach_base(
    request: BuildRequest, settings: LibrarySettings, pulls: Pulls | None = None
) -> tuple[BaseFacts, list[str]]:
    """Return what is known of the base image, and warnings. Raises `CicError` if it is out of reach."""
    platform = request.machine.platform
    reference = _from_image(request, settings.build)
    if reference is None:
        key = "os_image" if request.is_base else "base_image"
        raise Misconfigured(
            f"No {key} is configured for {platform}.", hint=f"Add {platform} to build_cfg['{key}']."
        )
    return _facts_of(reference, platform, settings, pulls)


def pin_runtime(
    request: BuildRequest,
    base: BaseFacts,
    settings: LibrarySettings,
    pulls: Pulls | None = None,
) -> tuple[BaseFacts | None, str]:
    """Return the image that a slim image is built on, or None and why there is none."""
    platform = request.machine.platform
    reference = settings.build.runtime_base_for(platform)
    if reference is None:
        return None, f"build_cfg names no runtime_base_image for {platform}."
    try:
        runtime, _ = _facts_of(reference, platform, settings, pulls)
    except CicError as error:
        if pulls is not None and pulls.cancel is not None:
            pulls.cancel.check()
        return None, str(error)
    if not (base.is_here and runtime.is_here):
        return None, NOT_HERE_YET
    reason = slim.incompatibility(base, runtime)
    return (None, f"{reason}.") if reason else (runtime, "")


def base_name(request: BuildRequest, build: BuildSettings) -> str:
    """Return the base image's own name, which the images of its platform are built on."""
    platform = request.machine.platform
    name = build.base_image_for(platform)
    if name is None or "@" in name:
        raise Misconfigured(
            f"build_cfg['base_image'] names no image for {platform} that could be built.",
            hint="Write a name with a tag.",
        )
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _facts_of(
    reference: str, platform: str, settings: LibrarySettings, pulls: Pulls | None
) -> tuple[BaseFacts, list[str]]:
    """Return what is known of an image to build on, and a warning if that is little."""
    pinned, digest = base_image.resolve_base(
        reference, platform, settings.registry, local=buildx.sees_local_images(settings.build, run)
    )
    return look_at(pinned, digest, platform, settings, pulls)


def look_at(
    reference: str,
    digest: str | None,
    platform: str,
    settings: LibrarySettings,
    pulls: Pulls | None,
) -> tuple[BaseFacts, list[str]]:
    """Return what is known of an image of this digest, and a warning if that is little."""
    facts, warning = base_image.facts_or_guess(
        reference,
        digest,
        platform,
        settings.build.tmp_folder / "cache" / "bases",
        pull_from=settings.registry if pulls is not None else None,
        cancel=pulls.cancel if pulls is not None else None,
    )
    return facts, [warning] if warning else []


def _from_image(request: BuildRequest, build: BuildSettings) -> str | None:
    """The image that the request's image is built on."""
    platform = request.machine.platform
    return build.os_image_for(platform) if request.is_base else build.base_image_for(platform)
