"""Attests images with how they were built: the builder itself makes and pushes the attestations.

The image is checked in the daemon, whose store keeps no attestations. So the builder, which has all
layers in its cache, pushes the image under no name, attested. It gets the image's name only if it
consists of the checked image's layers: a builder that had lost its cache would have built a new
image that was never checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from image_builder.docker.registry import repository_of
from image_builder.errors import CicError, ErrorCode
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, LineSink, Runner
from image_builder.settings import BuildSettings

PROVENANCE = "type=provenance,mode=min"
"""SLSA provenance: the base image with its digest, the platform, and when. More would hold the
build arguments, and with them the password of a proxy.
"""
ENVIRONMENT = {"BUILDX_GIT_INFO": "false"}
"""Buildx would name the git work tree that a workspace happens to be in as the image's source."""
TIMEOUT_S = 600

_INSPECTED = '{"manifest":{{json .Manifest}},"image":{{json .Image}}}'
_KIND = "vnd.docker.reference.type"


class NotAttested(CicError):
    """The registry does not have the checked image with attestations."""

    code = ErrorCode.PUSH_FAILED


def wanted(settings: BuildSettings) -> tuple[str, ...]:
    """Return what an image is attested with, in buildx's notation."""
    generator = settings.sbom_generator
    return (PROVENANCE,) if generator is None else (PROVENANCE, f"type=sbom,generator={generator}")


def output(image_id: str) -> str:
    """Return the output of a buildx that pushes an image without a name.

    It goes into the repository that `image_id` belongs to.
    """
    return f"type=image,name={repository_of(image_id)},push=true,push-by-digest=true"


def pushed(image_id: str, metadata: str) -> str:
    """Return the reference of the image that such a buildx pushed, from the `metadata` it wrote.

    Raises `NotAttested`.
    """
    try:
        return f"{repository_of(image_id)}@{json.loads(metadata)['containerimage.digest']}"
    except (ValueError, KeyError, TypeError) as error:
        raise NotAttested(f"buildx did not tell what it pushed: {error!r}") from error


class Attested:
    """Checks and names attested images in a registry.

    Everything raises `ProcessFailed` when the registry or buildx fails.
    """

    def __init__(
        self,
        settings: BuildSettings,
        *,
        environment: Mapping[str, str],
        runner: Runner,
        on_line: LineSink,
        cancel: CancelToken,
    ) -> None:
        self._settings, self._environment, self._runner = settings, environment, runner
        self._on_line, self._cancel = on_line, cancel

    def require(self, reference: str, layers: Sequence[str]) -> str:
        """Return the digest of an image that is attested and consists of these layers.

        Raises `NotAttested`.
        """
        done = self._runner(
            self.command("inspect", f"--format={_INSPECTED}", reference),
            cancel=self._cancel,
            capture_stdout=True,
        )
        return read(done.stdout.decode("utf-8", "replace"), layers)

    def name(self, reference: str, image_id: str) -> None:
        """Let a name of the registry mean an image that it has."""
        self._runner(
            self.command("create", "--progress=plain", f"--tag={image_id}", reference),
            on_line=self._on_line,
            cancel=self._cancel,
        )

    def command(self, what: str, *arguments: str) -> Command:
        """Return an `imagetools` command of the buildx whose builder can reach the registry."""
        builder = (
            (f"--builder={self._settings.buildx_builder}",) if self._settings.buildx_builder else ()
        )
        return Command(
            name=f"docker buildx imagetools {what}",
            env=self._environment,
            timeout_s=TIMEOUT_S,
            argv=("docker", "buildx", "imagetools", what, *builder, *arguments),
        )


def read(inspected: str, layers: Sequence[str]) -> str:
    """Return the digest of an inspected image that is attested and consists of these layers.

    Raises `NotAttested`.
    """
    try:
        found: Mapping[str, Any] = json.loads(inspected)
        manifest, image = found["manifest"], found["image"]
        kinds = [
            (entry.get("annotations") or {}).get(_KIND) for entry in manifest.get("manifests", ())
        ]
        if "attestation-manifest" not in kinds:
            raise NotAttested("the image in the registry has no attestations")
        if tuple(image["rootfs"]["diff_ids"]) != tuple(layers):
            raise NotAttested("what the builder has is not the image that was checked")
        return str(manifest["digest"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotAttested(
            f"what buildx tells of the image in the registry cannot be read: {error!r}"
        ) from error
