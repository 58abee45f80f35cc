"""Takes an image out of the Docker daemon as plain blobs, and puts it into another one.

What `docker save` writes differs from version to version and holds names that `docker load` would
overwrite. A bundle has the image's configuration and layers alone, each by its sha256; the archive
that is loaded is made of them, and names nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import IO, Any

from image_builder.bundle.manifest import AGAIN, IMAGES, BadBundle, Image, is_repository
from image_builder.docker import daemon
from image_builder.docker.base_image import BaseFacts
from image_builder.docker.registry import repository_of
from image_builder.errors import ServiceError
from image_builder.host.cancellation import CancelToken
from image_builder.host.files import UnreadableFile, read_bounded
from image_builder.host.process import Command, ProcessFailed, Runner
from image_builder.sources.git.trees import MTIME_S

TIMEOUT_S = 2 * 3600.0
MAX_CONFIG_BYTES = 4 * 1024**2
CHUNK_BYTES = 1024**2
_LOADED = re.compile(r"Loaded image ID: (sha256:[0-9a-f]{64})\s*\Z")


def save(
    base: BaseFacts, folder: Path, scratch: Path, *, runner: Runner, cancel: CancelToken
) -> Image:
    """Write the blobs of an image of the daemon to `folder`; one that is there stays."""
    image = daemon.find_image(base.reference)
    assert image is not None and base.digest is not None, "a build begins with its base image here"
    archive = scratch / "saved.tar"
    runner(daemon.save_command(image, archive, timeout_s=TIMEOUT_S), cancel=cancel)
    try:
        with tarfile.open(archive, "r:") as saved:
            listed: list[dict[str, Any]] = json.loads(_content(saved, "manifest.json").read())
            (about,) = listed
            config = _blob(_content(saved, about["Config"]), folder, cancel)
            layers = [_blob(_content(saved, name), folder, cancel) for name in about["Layers"]]
    except (KeyError, TypeError, ValueError, tarfile.TarError) as error:
        raise ServiceError(
            f"What docker saved of {base.reference} cannot be read: {error}"
        ) from error
    finally:
        archive.unlink(missing_ok=True)
    repository = repository_of(base.reference).lower()
    return Image(
        repository=repository if is_repository(repository) else "cic-bundle",
        digest=base.digest,
        config=config,
        layers=layers,
    )


def load(
    image: Image,
    folder: Path,
    scratch: Path,
    *,
    platform: str,
    runner: Runner,
    cancel: CancelToken,
) -> str:
    """Put an image of checked blobs into the daemon, and return the name that it has there.

    Raises `BadBundle` for what is no image of the platform.
    """
    _require_platform(folder / image.config, platform)
    archive = scratch / "image.tar"
    _pack(image, folder, archive)
    command = Command(
        name="docker load",
        argv=("docker", "load", "--input", str(archive)),
        timeout_s=TIMEOUT_S,
        max_stdout_bytes=64 * 1024,
    )
    try:
        said = runner(command, cancel=cancel, capture_stdout=True).stdout.decode("utf-8", "replace")
    except ProcessFailed as error:
        raise BadBundle(
            f"Docker cannot load the bundle's image {image.repository}: {error.message}", hint=AGAIN
        ) from error
    finally:
        archive.unlink(missing_ok=True)
    loaded = _LOADED.search(said)
    if loaded is None:
        raise ServiceError(f"docker load did not say what it loaded: {said[-300:]!r}")
    daemon.tag_image(loaded[1], image.reference)
    return image.reference


def _content(saved: tarfile.TarFile, name: str) -> IO[bytes]:
    file = saved.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file


def _blob(content: IO[bytes], folder: Path, cancel: CancelToken) -> str:
    """Write a blob to a file named by its sha256, and return that."""
    aside, digest = folder / "aside", hashlib.sha256()
    with aside.open("wb") as file:
        while chunk := content.read(CHUNK_BYTES):
            cancel.check()
            digest.update(chunk)
            file.write(chunk)
    aside.replace(folder / digest.hexdigest())
    return digest.hexdigest()


def _require_platform(config: Path, platform: str) -> None:
    try:
        about = json.loads(read_bounded(config, MAX_CONFIG_BYTES))
        own = f"{about['os']}/{about['architecture']}"
    except (UnreadableFile, ValueError, KeyError, TypeError, RecursionError):
        raise BadBundle("The bundle's base image is no image.", hint=AGAIN) from None
    if own != platform:
        raise BadBundle(
            f"The bundle's base image is for {own[:60]}, and the request for {platform}.",
            hint=f"Make a bundle for {platform}.",
        )


def _pack(image: Image, folder: Path, archive: Path) -> None:
    config = f"{image.config}.json"
    listed = [
        {
            "Config": config,
            "RepoTags": None,
            "Layers": [f"{layer}.tar" for layer in image.layers],
        }
    ]
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as packed:
        _add(packed, "manifest.json", io.BytesIO(json.dumps(listed).encode()))
        for name, blob in {
            config: image.config,
            **{f"{one}.tar": one for one in image.layers},
        }.items():
            with (folder / blob).open("rb") as file:
                _add(packed, name, file)


def _add(packed: tarfile.TarFile, name: str, file: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = file.seek(0, os.SEEK_END), MTIME_S
    file.seek(0)
    packed.addfile(member, file)


def blobs(image: Image) -> list[str]:
    """Return the paths in a bundle of an image's blobs."""
    return [f"{IMAGES}/{blob}" for blob in (image.config, *image.layers)]
