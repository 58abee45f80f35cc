"""Asks the Docker daemon, through the Docker SDK, about images, containers and itself.

Images are built with `docker buildx`, and pushed with `docker push`: every command's arguments are
made in one function and run in another. Credentials pass to the daemon over its socket, or are in a
build's own DOCKER_CONFIG.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import io
import ipaddress
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests
from docker.utils import parse_repository_tag

from image_builder.docker import label_names
from image_builder.errors import CicError, ErrorCode, ServiceError, Unavailable
from image_builder.host.process import Command
from image_builder.request.build_request import BASE

DAEMON_TIMEOUT_S = 60
TAR_MARGIN_BYTES = 64 * 1024


class BaseImageUnavailable(Unavailable):
    """The base image is neither on this machine nor in its registry."""

    code = ErrorCode.BASE_IMAGE_UNAVAILABLE


@contextlib.contextmanager
def daemon(timeout_s: float = DAEMON_TIMEOUT_S) -> Iterator[docker.DockerClient]:
    """Yield a client of the Docker daemon. Raises `Unavailable` if the daemon does not answer."""
    try:
        client = docker.from_env(timeout=int(timeout_s))
    except docker.errors.DockerException as error:
        raise _no_daemon(error) from error
    try:
        yield client
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise _no_daemon(error) from error
    finally:
        client.close()


def _no_daemon(error: Exception) -> Unavailable:
    return Unavailable(
        f"The Docker daemon does not answer: {first_line(error)}",
        hint="Start it, and check that this user may use its socket.",
        code=ErrorCode.DOCKER_UNAVAILABLE,
    )


def first_line(error: Exception) -> str:
    text = str(getattr(error, "explanation", None) or error)
    return text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__


def local_image(client: docker.DockerClient, reference: str) -> Any | None:
    try:
        return client.images.get(reference)
    except docker.errors.ImageNotFound:
        return None
    except docker.errors.APIError as error:
        raise BaseImageUnavailable(
            f"The base image {reference!r} cannot be looked up: {first_line(error)}"
        ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bridge:
    """Describes the network of build steps, and of containers that name no other network.

    It holds the network's interface and this host's address on it.
    """

    interface: str
    gateway: str


def default_bridge() -> Bridge:
    """Return Docker's default bridge.

    Raises `Unavailable`, or `ServiceError` for a daemon without one.
    """
    with daemon() as client:
        try:
            attributes = client.networks.get("bridge").attrs
        except docker.errors.APIError as error:
            raise ServiceError(f"Docker has no default bridge: {first_line(error)}") from error
    gateways = [
        entry.get("Gateway")
        or str(ipaddress.ip_network(entry["Subnet"])[1])  # 20.10 leaves out the usual one
        for entry in attributes["IPAM"]["Config"]
        if "." in entry.get("Subnet", "")
    ]
    if not gateways:
        raise ServiceError("Docker's default bridge has no address.")
    return Bridge(
        interface=attributes["Options"].get("com.docker.network.bridge.name", "docker0"),
        gateway=gateways[0],
    )


def server_version() -> str:
    """Return the daemon's version, such as 26.1.5."""
    with daemon() as client:
        return str(client.version()["Version"])


def find_by_identity(identity: str, *, named: bool = False) -> str | None:
    """Return the id of an image in the daemon that was built with this identity, or None.

    With `named`, only an image that has a name, too.
    """
    with daemon() as client:
        images = client.api.images(filters={"label": f"{label_names.IDENTITY}={identity}"})
    names = {str(image["Id"]): _without_none(image.get("RepoTags")) for image in images}
    named_first = sorted(names, key=lambda image: not names[image])
    return next((image for image in named_first if names[image] or not named), None)


def find_image(reference: str) -> str | None:
    """Return the id of the daemon's image of this name or digest, or None."""
    with daemon() as client:
        image = local_image(client, reference)
    return None if image is None else str(image.id)


def has_image(reference: str) -> bool:
    """Return whether the daemon has an image of this name or digest."""
    return find_image(reference) is not None


def image_bytes(image: str) -> int | None:
    """Return how large an image in the daemon is, unpacked, or None when there is no such image."""
    with daemon() as client:
        try:
            return int(client.images.get(image).attrs["Size"])
        except docker.errors.ImageNotFound:
            return None


def image_created_s(image: str) -> int | None:
    """Return when an image in the daemon was made, in seconds since 1970, or None if that is unknown."""
    with daemon() as client:
        try:
            text = str(client.images.get(image).attrs.get("Created") or "")
        except docker.errors.ImageNotFound:
            return None
    try:
        moment = datetime.datetime.fromisoformat(text[:19])
    except ValueError:
        return None
    return int(moment.replace(tzinfo=datetime.timezone.utc).timestamp())


def image_digests(image: str) -> tuple[str, ...]:
    """Return the `repository@digest` that an image was pulled or pushed as."""
    with daemon() as client:
        try:
            return tuple(client.images.get(image).attrs.get("RepoDigests") or ())
        except docker.errors.ImageNotFound:
            return ()


def image_layers(image: str) -> tuple[str, ...]:
    """Return the digests of an image's unpacked layers; empty when the daemon has no such image."""
    with daemon() as client:
        try:
            return tuple(client.images.get(image).attrs["RootFS"].get("Layers") or ())
        except docker.errors.ImageNotFound:
            return ()


def image_labels(image: str) -> dict[str, str]:
    """Return the labels of an image in the daemon; empty when there is no such image."""
    return dict(image_config(image).get("Labels") or {})


def image_config(image: str) -> Mapping[str, Any]:
    """Return the configuration of an image's containers (`WorkingDir`, ...).

    It is empty when the daemon has no such image.
    """
    with daemon() as client:
        try:
            return dict(client.images.get(image).attrs.get("Config") or {})
        except docker.errors.ImageNotFound:
            return {}


def read_file(image: str, path: str, max_bytes: int) -> str | None:
    """Return a text file of an image, or None.

    None stands for a file that is absent, no plain file, or larger than `max_bytes`.
    """
    with daemon() as client:
        container = client.api.create_container(image, command=["true"], entrypoint=[])
        try:
            chunks, _ = client.api.get_archive(container["Id"], path)
            packed = io.BytesIO()
            for chunk in chunks:
                packed.write(chunk)
                if packed.tell() > max_bytes + TAR_MARGIN_BYTES:
                    return None
        except docker.errors.NotFound:
            return None
        finally:
            client.api.remove_container(container["Id"], force=True)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        member = archive.next()
        file = archive.extractfile(member) if member is not None and member.isreg() else None
        return file.read().decode("utf-8", "replace") if file is not None else None


def tag_image(image: str, image_id: str) -> None:
    """Give the built image its name. Only what passed every check gets one."""
    repository, tag = parse_repository_tag(image_id)
    with daemon() as client:
        client.images.get(image).tag(repository, tag=tag)


def remove_image(image: str) -> None:
    """Remove an image that did not pass; one that is gone or in use stays as it is."""
    with contextlib.suppress(CicError, docker.errors.APIError), daemon() as client:
        client.images.remove(image)


def remove_container(name: str) -> bool:
    """End and remove a container, and return whether there was one."""
    with contextlib.suppress(CicError, docker.errors.APIError), daemon() as client:
        client.api.remove_container(name, v=True, force=True)
        return True
    return False


def labelled_containers(label: str) -> list[tuple[str, str]]:
    """Return the containers with a label, running or not, as (id, the label's value)."""
    with daemon() as client:
        containers = client.api.containers(all=True, filters={"label": label})
    return [(container["Id"], container["Labels"][label]) for container in containers]


@functools.lru_cache(maxsize=1)
def data_folder() -> Path:
    """Return where the daemon keeps images and layers; it may be on another machine."""
    with daemon() as client:
        return Path(str(client.info().get("DockerRootDir") or "/nonexistent"))


def cgroup_driver() -> str:
    """Return how the daemon makes control groups: `cgroupfs` or `systemd`."""
    with daemon() as client:
        return str(client.info().get("CgroupDriver", ""))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaemonImage:
    """Describes an image in the daemon that a service with this daemon made, be it another one."""

    id: str
    identity: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    size_bytes: int
    """With layers that other images share."""
    created_at: float
    """In seconds since 1970; it may be that of an equal image which was made earlier."""
    is_base: bool


def save_command(image: str, archive: Path, *, timeout_s: float) -> Command:
    """Return the `docker save` of an image into a file."""
    return Command(
        name="docker save",
        argv=("docker", "save", "--output", str(archive), image),
        timeout_s=timeout_s,
    )


def made_images() -> list[DaemonImage]:
    """Return the images in the daemon that were built here."""
    with daemon() as client:
        images = client.api.images(filters={"label": [label_names.IDENTITY]})
    return [
        DaemonImage(
            id=image["Id"],
            identity=image["Labels"][label_names.IDENTITY],
            names=_without_none(image.get("RepoTags")),
            digests=_without_none(image.get("RepoDigests")),
            size_bytes=image["Size"],
            created_at=image["Created"],
            is_base=image["Labels"].get(label_names.WORKFLOW) == BASE,
        )
        for image in images
    ]


def _without_none(references: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(reference for reference in references or () if "<none>" not in reference)


def remove_made_image(image: DaemonImage) -> bool:
    """Remove an image with all its names, and return whether that was done.

    While a container is made of it, nothing is done.
    """
    with daemon() as client:
        if client.api.containers(all=True, filters={"ancestor": image.id}):
            return False
        for reference in (*image.names, *image.digests, image.id):
            try:
                client.api.remove_image(reference)
            except docker.errors.ImageNotFound:
                continue
            except docker.errors.APIError:
                return False
    return True
