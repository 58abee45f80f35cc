"""Defines what a bundle says of itself: what it is for, and each of its files. Pure.

A bundle that nobody signed was written by a stranger, so every value has a shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from image_builder.errors import UserError
from image_builder.plan.digest import canonical_json
from image_builder.request.build_request import BuildRequest

FORMAT = 1
MAX_BYTES = 32 * 1024**2
MAX_FILES = 100_000
MEDIA_TYPE = "application/vnd.cic.bundle.manifest+json"
STEP, PACKAGES, CONFIG, LOCK = "step.tar", "catalogue.tar", "spack-config.tar", "spack.lock"
IMAGES = "images"
AGAIN = "Make it again: cic_builder.py bundle --request FILE --output bundle.tar"

_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_.+~%@=:,-]{1,200}"
_PATH = re.compile(rf"{_PART}(?:/{_PART}){{0,30}}\Z")
_SHA256 = r"^[0-9a-f]{64}$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"{_NAME}(?::[0-9]{{1,5}})?(?:/{_NAME})*"
_WHOLE_REPOSITORY = re.compile(rf"{_REPOSITORY}\Z")
"""What Docker takes for an image's name without a tag, in lower case."""
_GIT = r"^[0-9a-f]{40}$"

Sha256 = Annotated[str, Field(pattern=_SHA256)]
Digest = Annotated[str, Field(pattern=_DIGEST)]
GitHash = Annotated[str, Field(pattern=_GIT)]
Text = Annotated[str, Field(max_length=8000)]
Path = Annotated[str, Field(max_length=1000)]
"""What `is_path` allows; pydantic's own patterns know no look-ahead."""


class BadBundle(UserError):
    """The bundle cannot be used; nothing is built."""


class Part(BaseModel):
    """Is a part of a manifest: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(Part):
    """Describes one file of a bundle."""

    path: Path
    sha256: Sha256
    size: int = Field(ge=0, lt=2**40)


class Image(Part):
    """Describes an image to build on: how the identity names it, and of which blobs it is made."""

    repository: str = Field(pattern=f"^{_REPOSITORY}$", max_length=255)
    digest: Digest
    config: Sha256
    layers: list[Sha256] = Field(min_length=1, max_length=500)

    @property
    def reference(self) -> str:
        """Return the name that the image gets here; it holds what the image is."""
        return f"{self.repository}:{self.config}"


class Step(Part):
    """Describes the step: the tree of its folder, and when its commit was made."""

    tree: GitHash
    commit: GitHash | None = None
    time_s: int | None = Field(default=None, ge=0, lt=2**32)


class Trees(Part):
    """Names the trees of the site's packages and Spack configuration, and their commits."""

    packages_tree: GitHash | None = None
    packages_commit: GitHash | None = None
    config_tree: GitHash | None = None
    config_commit: GitHash | None = None


class Manifest(Part):
    """Describes a bundle: for which request and identity it is, and what it holds."""

    format: int
    recipe: str = Field(max_length=20)
    platform: str = Field(max_length=40)
    identity: Digest
    request: dict[str, Any]
    step: Step
    catalogue: Trees
    base: Image
    runtime: Image | None = None
    full_because: Text = ""
    branch_commits: dict[Text, GitHash]
    workflow_repository: Text | None = None
    files: list[File] = Field(max_length=MAX_FILES)

    @model_validator(mode="after")
    def _plain_paths(self) -> Manifest:
        paths = [file.path for file in self.files]
        for path in paths:
            if not is_path(path):
                raise ValueError(f"{path[:100]!r} is no path in a bundle")
        if len({path.lower() for path in paths}) != len(paths) or paths != sorted(paths):
            raise ValueError("its files are not in order, or twice there")
        taken = set(paths)
        if any(folder in taken for path in paths for folder in _folders_of(path)):
            raise ValueError("one of its files is a folder, too")
        return self

    @property
    def by_path(self) -> dict[str, File]:
        return {file.path: file for file in self.files}

    @property
    def images(self) -> tuple[Image, ...]:
        """Return the images to build on."""
        return (self.base,) if self.runtime is None else (self.base, self.runtime)

    def text(self) -> bytes:
        """Return the manifest as it is written: equal for equal manifests."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True)) + b"\n"


def is_path(path: str) -> bool:
    """Return whether a file of a bundle may have this path: plain names below its folder."""
    return _PATH.match(path) is not None


def is_repository(name: str) -> bool:
    """Return whether an image in a bundle may have this name, without a tag."""
    return len(name) <= 255 and _WHOLE_REPOSITORY.match(name) is not None


def _folders_of(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def read_manifest(text: bytes) -> Manifest:
    """Return the manifest of a text of bounded size. Raises `BadBundle`."""
    try:
        manifest = Manifest.model_validate_json(text)
        is_ours = manifest.text() == text
    except (ValidationError, RecursionError, UnicodeError) as error:
        why = (
            "; ".join(
                f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
                for detail in error.errors(include_url=False, include_input=False)[:5]
            )
            if isinstance(error, ValidationError)
            else "it cannot be read"
        )
        raise BadBundle(f"The bundle's manifest is not valid: {why[:1000]}.", hint=AGAIN) from None
    if not is_ours:
        raise BadBundle("The bundle's manifest was edited.", hint=AGAIN)
    return manifest


def require_for(
    manifest: Manifest, request: BuildRequest, *, recipe: str, formats: tuple[int, ...] = (FORMAT,)
) -> None:
    """Raise `BadBundle` unless the bundle is for this request and this version of the service."""
    if manifest.format not in formats:
        raise BadBundle(
            f"The bundle has format {manifest.format}, and this version reads {formats[-1]}.",
            hint="Use the same version of the service on both sides.",
        )
    if manifest.recipe != recipe:
        raise BadBundle(
            f"The bundle is for recipe {manifest.recipe}, and this version has {recipe}.",
            hint="Use the same version of the service on both sides.",
        )
    if request.from_lock is not None:
        raise BadBundle(
            "The bundle has a lockfile of its own, and the request names one, too.",
            hint="Leave from_lock out of the request.",
        )
    platform = request.machine.platform
    if manifest.platform != platform:
        raise BadBundle(
            f"The bundle is for {manifest.platform}, and the request for {platform}.",
            hint=f"Make a bundle of this request, for {platform}.",
        )
    differences = list(_differences(manifest.request, request.image_fields()))
    if differences:
        raise BadBundle(
            "The bundle is for another request: " + "; ".join(differences[:10]),
            hint="Use the file that the bundle was made with, or make a bundle of this request.",
        )


def _differences(there: Any, here: Any, place: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping) and place in ("", "machine"):
        for key in sorted({*there, *here}):
            name = f"{place}.{key}" if place else str(key)
            yield from _differences(there.get(key), here.get(key), name)
    elif there != here:
        yield f"{place} is {_short(there)} in the bundle, and {_short(here)} in the request"


def _short(value: Any) -> str:
    text = "not there" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
