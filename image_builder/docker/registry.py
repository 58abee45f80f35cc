"""Reaches the image registry through Docker: credentials, references, pull and push."""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import docker
from docker.utils import parse_repository_tag

from image_builder.docker import label_names
from image_builder.docker.daemon import (
    BaseImageUnavailable,
    find_image,
    image_labels,
)
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, ProcessFailed, Runner, run
from image_builder.settings import RegistrySettings

PULL_TIMEOUT_S = 2 * 3600.0
_IDENTITY_TAG = re.compile(r":identity-[0-9a-f]{64}\Z")
DOCKER_HUB_KEY = "https://index.docker.io/v1/"


def repository_of(reference: str) -> str:
    """Return what an image's reference names, without its tag and its digest."""
    return str(parse_repository_tag(reference.split("@")[0])[0])


def registry_address(reference: str) -> str:
    """Return the host and the path at which a registry's own interface has an image's repository."""
    host, name = docker.auth.resolve_repository_name(repository_of(reference))
    return f"{'registry-1.docker.io' if host == 'docker.io' else host}/{name}"


def identity_name(image_id: str, identity: str) -> str:
    """Return the name, in the same repository, that only images of this identity have."""
    return f"{repository_of(image_id)}:identity-{identity.removeprefix('sha256:')}"


def is_identity_name(reference: str) -> bool:
    """Return whether a reference is an `identity_name`."""
    return _IDENTITY_TAG.search(reference) is not None


def auth_config(reference: str, registry: RegistrySettings) -> dict[str, str] | None:
    """Return the credentials for the registry of `reference`, in the form that the SDK takes."""
    host, _ = docker.auth.resolve_repository_name(repository_of(reference))
    login = registry.login_for(host)
    return (
        None
        if login is None
        else {"username": login.user, "password": login.token.get_secret_value()}
    )


def write_docker_config(folder: Path, registry: RegistrySettings) -> dict[str, str]:
    """Write a build's own client configuration with credentials by host.

    Return the environment that names it.
    """
    auths = {}
    for host, login in registry.all_logins().items():
        pair = f"{login.user}:{login.token.get_secret_value()}".encode()
        auths[DOCKER_HUB_KEY if host == "docker.io" else host] = {
            "auth": base64.b64encode(pair).decode()
        }
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / "config.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"auths": auths}), "utf-8")
    own = os.environ.get("DOCKER_CONFIG") or str(Path.home() / ".docker")
    return {
        "DOCKER_CONFIG": str(folder),
        "BUILDX_CONFIG": os.environ.get("BUILDX_CONFIG", f"{own}/buildx"),
    }


def pull(
    reference: str,
    platform: str,
    registry: RegistrySettings,
    *,
    runner: Runner = run,
    cancel: CancelToken | None = None,
) -> None:
    """Pull an image into the daemon; it ends as soon as it is cancelled.

    Raises `BaseImageUnavailable` for what the registry does not give.
    """
    with tempfile.TemporaryDirectory(prefix="cic-pull-") as folder:
        environment = write_docker_config(Path(folder) / "docker", registry)
        command = pull_command(reference, platform, registry, environment=environment)
        try:
            runner(command, cancel=cancel)
        except ProcessFailed as error:
            raise BaseImageUnavailable(
                f"The image {reference} cannot be pulled: {error.message[:300]}"
            ) from error


def pull_command(
    reference: str, platform: str, registry: RegistrySettings, *, environment: Mapping[str, str]
) -> Command:
    """Return the `docker pull` of an image; when the process ends, the daemon stops pulling."""
    return Command(
        name="docker pull",
        argv=("docker", "pull", "--quiet", f"--platform={platform}", "--", reference),
        env=environment,
        timeout_s=PULL_TIMEOUT_S,
        secrets=registry.secrets,
    )


def pull_pushed(
    reference: str,
    identity: str,
    platform: str,
    registry: RegistrySettings,
    *,
    runner: Runner = run,
    cancel: CancelToken | None = None,
) -> str | None:
    """Return the id of an image pulled by this `repository@digest`, or None if it is gone.

    The labels of an image are not trusted: every account that may push to a registry can write
    them.
    """
    try:
        pull(reference, platform, registry, runner=runner, cancel=cancel)
    except BaseImageUnavailable:
        return None
    image = find_image(reference)
    if image is None or image_labels(image).get(label_names.IDENTITY) != identity:
        return None
    return image


def push_command(
    image_id: str, registry: RegistrySettings, *, environment: Mapping[str, str], timeout_s: float
) -> Command:
    """Return the `docker push` of a named image.

    `environment` names the client configuration with the credentials. It is a process of its own:
    it can be ended while it prints nothing, and the daemon stops pushing with it.
    """
    return Command(
        name="docker push",
        argv=("docker", "push", "--", image_id),
        env=environment,
        timeout_s=timeout_s,
        secrets=registry.secrets,
    )
