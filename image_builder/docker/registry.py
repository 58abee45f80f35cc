"""The image registry, through Docker: credentials, references, pull and push."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

import docker
import docker.errors
from docker.utils import parse_repository_tag

from image_builder.docker.daemon import IDENTITY_LABEL, daemon
from image_builder.host.process import Command
from image_builder.settings import RegistrySettings

DOCKER_HUB_KEY = "https://index.docker.io/v1/"


def repository_of(reference: str) -> str:
    """What an image's reference names, without its tag and its digest."""
    return str(parse_repository_tag(reference.split("@")[0])[0])


def auth_config(reference: str, registry: RegistrySettings) -> dict[str, str] | None:
    """The credentials for the registry that `reference` lies in, in the form that the SDK takes."""
    host, _ = docker.auth.resolve_repository_name(repository_of(reference))
    login = registry.login_for(host)
    return (
        None
        if login is None
        else {"username": login.user, "password": login.token.get_secret_value()}
    )


def write_docker_config(folder: Path, registry: RegistrySettings) -> dict[str, str]:
    """A build's own client configuration with credentials by host; returns the environment that
    names it.
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


def pull_by_identity(
    image_id: str, identity: str, platform: str, registry: RegistrySettings
) -> str | None:
    """The id of the pulled image, if the registry's image of this name was built with this
    identity.
    """
    auth = auth_config(image_id, registry)
    with daemon() as client:
        try:
            image = client.images.pull(image_id, platform=platform, auth_config=auth)
        except docker.errors.APIError:
            return None
    return str(image.id) if (image.labels or {}).get(IDENTITY_LABEL) == identity else None


def push_command(
    image_id: str, registry: RegistrySettings, *, environment: Mapping[str, str], timeout_s: float
) -> Command:
    """The `docker push` of a named image; `environment` names the client configuration with the
    credentials.

    A process of its own: it can be ended in the middle of a silence, and the daemon stops pushing
    with it.
    """
    return Command(
        name="docker push",
        argv=("docker", "push", "--", image_id),
        env=environment,
        timeout_s=timeout_s,
        secrets=tuple(login.token for login in registry.all_logins().values()),
    )
