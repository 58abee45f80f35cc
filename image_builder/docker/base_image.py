"""Finds the digest of a build's base image, and what that image contains."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker.errors

from image_builder.docker.container import run_probe
from image_builder.docker.daemon import (
    BaseImageUnavailable,
    daemon,
    first_line,
    has_image,
    image_config,
    local_image,
)
from image_builder.docker.registry import auth_config, pull, repository_of
from image_builder.errors import CicError
from image_builder.host import files
from image_builder.host.cancellation import CancelToken
from image_builder.settings import RegistrySettings
from image_builder.spack.versions import numbers


def resolve_base(
    reference: str, platform: str, registry: RegistrySettings, *, local: bool = True
) -> tuple[str, str]:
    """Return what `FROM` has to name so that it means exactly this image, and the image's digest.

    An image that exists in the daemon alone has no registry digest: it gets a tag that contains its
    content's id. `local` False is for builders that do not see the daemon's images. Raises
    `BaseImageUnavailable`.
    """
    with daemon() as client:
        image = local_image(client, reference) if local else None
        if image is not None and not image.attrs.get("RepoDigests"):
            _require_platform(image, reference, platform)
            return _pinned_tag(image, reference), image.id
        repository = repository_of(reference)
        try:
            digest = client.images.get_registry_data(
                reference, auth_config=auth_config(reference, registry)
            ).id
            return f"{repository}@{digest}", digest
        except docker.errors.APIError as error:
            if image is None:
                raise BaseImageUnavailable(
                    f"The base image {reference} cannot be fetched: {first_line(error)}",
                    hint="Check build_cfg['base_image'], or make the image on this host.",
                ) from error
        _require_platform(image, reference, platform)
        return _pinned_tag(image, reference), image.id


def _require_platform(image: Any, reference: str, platform: str) -> None:
    own = f"{image.attrs.get('Os', 'linux')}/{image.attrs.get('Architecture', '')}"
    if own != platform:
        raise BaseImageUnavailable(
            f"The base image {reference} is for {own}, and the request is for {platform}.",
            hint="Let build_cfg['base_image'] hold {platform}, or map platforms to images.",
        )


def _pinned_tag(image: Any, reference: str) -> str:
    repository = repository_of(reference)
    tag = image.id.removeprefix("sha256:")
    pinned = f"{repository}:{tag}"
    if pinned not in image.tags:
        image.tag(repository, tag=tag)
    return pinned


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """Holds what the planner has to know of a base image; None is what is absent or unknown."""

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
    has_dpkg: bool = False
    """Debian's list of installed packages is there."""
    is_here: bool = True
    """False: the image is not on this machine yet, and the rest is guessed from its name."""


QUESTIONS = 4
"""The number of what is asked below: answers to fewer questions are not used any more."""
_SCRIPT = """
. /etc/os-release 2>/dev/null; echo "os=$ID"; echo "os_version=$VERSION_ID"
for c in gcc clang; do command -v $c >/dev/null 2>&1 && echo "compiler=$c:$($c -dumpfullversion -dumpversion)"; done
command -v python3 >/dev/null 2>&1 && echo "python=$(python3 -c 'import platform; print(platform.python_version())')"
for s in "$(command -v spack)" "$SPACK_ROOT/bin/spack" /opt/spack/bin/spack /spack/bin/spack; do
  [ -x "$s" ] && { echo "spack=$("$s" --version 2>/dev/null)"; break; }
done
[ -f /var/lib/dpkg/status ] && echo "dpkg=yes"
tr '\\0\\n' '\\n ' </proc/self/environ | sed 's/^/variable=/'
"""
_VERSION = re.compile(r"\d{1,9}(?:\.\d{1,9})+")


def probe_base(
    reference: str,
    digest: str | None,
    platform: str,
    cache: Path,
    *,
    cancel: CancelToken | None = None,
) -> BaseFacts:
    """Return what the base image, which is on this machine, holds. `cache` is a folder.

    An image that cannot run here gives facts that say little.
    """
    remembered = _remembered(cache, digest, platform)
    if digest and remembered.is_file():
        output = json.loads(remembered.read_text("utf-8"))
    else:
        output = run_probe(reference, platform, ("/bin/sh", "-c", _SCRIPT), cancel=cancel)
        output += f"\nconfig={json.dumps(image_config(reference))}\n"
        if digest:
            cache.mkdir(parents=True, exist_ok=True)
            files.write_whole(remembered, json.dumps(output))
    return _facts(output, reference, digest, platform)


def _remembered(cache: Path, digest: str | None, platform: str) -> Path:
    name = f"{(digest or '').replace(':', '-')}_{platform.replace('/', '-')}_{QUESTIONS}.txt"
    return cache / name


def unprobed_base(
    reference: str, digest: str | None, platform: str, *, is_here: bool = True
) -> BaseFacts:
    """Return what the reference alone says: `spack_base:0.19.2` names its Spack."""
    tag = reference.split("@")[0].rsplit(":", 1)[-1]
    named = _VERSION.match(tag) if "spack" in reference else None
    return BaseFacts(
        reference=reference,
        digest=digest,
        platform=platform,
        os_id="",
        os_version="",
        spack_version=numbers(named.group()) if named else None,
        compilers={},
        python=None,
        is_here=is_here,
    )


def facts_or_guess(
    reference: str,
    digest: str | None,
    platform: str,
    cache: Path,
    *,
    pull_from: RegistrySettings | None = None,
    cancel: CancelToken | None = None,
) -> tuple[BaseFacts, str]:
    """Return the facts, and a warning where they have to be guessed.

    An image that is not on this machine is pulled with the logins of `pull_from`: that may take
    long, so a web request gives none, and gets facts with `is_here` False.
    """
    try:
        if not (digest and _remembered(cache, digest, platform).is_file()):
            if pull_from is None and not has_image(reference):
                return unprobed_base(reference, digest, platform, is_here=False), (
                    f"The base image {reference} is not on this machine yet: what it holds is "
                    "found out when the build begins."
                )
            if pull_from is not None and not has_image(reference):
                pull(reference, platform, pull_from, cancel=cancel)
        return probe_base(reference, digest, platform, cache, cancel=cancel), ""
    except CicError as error:
        if cancel is not None:
            cancel.check()
        return unprobed_base(
            reference, digest, platform
        ), f"What the base image holds is not known: {error.message}"


def _facts(output: str, reference: str, digest: str | None, platform: str) -> BaseFacts:
    pairs = [line.split("=", 1) for line in output.splitlines() if "=" in line]
    single = {key: value for key, value in pairs if key not in ("compiler", "variable")}
    variables = dict(
        value.split("=", 1) for key, value in pairs if key == "variable" and "=" in value
    )
    compilers = dict(
        value.split(":", 1) for key, value in pairs if key == "compiler" and ":" in value
    )
    spack = _VERSION.search(single.get("spack", ""))
    config = json.loads(single["config"])
    return BaseFacts(
        reference=reference,
        digest=digest,
        platform=platform,
        os_id=single.get("os", ""),
        os_version=single.get("os_version", ""),
        spack_version=numbers(spack.group()) if spack else None,
        compilers=compilers,
        python=single.get("python") or None,
        has_dpkg="dpkg" in single,
        variables=variables,
        folder=config.get("WorkingDir") or "",
        labels=config.get("Labels") or {},
    )
