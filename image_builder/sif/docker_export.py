"""Reads an image from the Docker daemon: its configuration, and its files as one stream.

The stream is that of a container which is never started. Docker prepares such a container for its
start: it puts files into `/dev` and `/etc` and hides the image's own behind them. Those few are read
through BuildKit, which shows the image as it is, is slower, and is stopped as soon as it has passed
`/etc`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import socket
import struct
import subprocess
import tarfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import docker.errors

from image_builder.docker import leftovers
from image_builder.docker.daemon import DAEMON_TIMEOUT_S, daemon, labelled_containers
from image_builder.errors import BuildFailed, CicError, ErrorCode, ServiceError
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, started

REPOSITORY = "cic-conversion"
"""The name of images during conversion, and the label of their containers.

A killed conversion leaves both behind.
"""

HIDDEN = frozenset({".dockerenv", "dev/console", "dev/pts", "dev/shm", "etc/hostname", "etc/mtab"})
"""What `apptainer build` takes from the image, and the stream does not show as it is there."""

HIDDEN_IF_LINK = frozenset({"etc/hosts", "etc/resolv.conf"})
"""What `apptainer build` replaces by an empty file, unless it is a symbolic link."""

MAX_HIDDEN_BYTES = 1024**2
MAX_ANSWER_BYTES = 64 * 1024
SILENCE_S = 300
"""How long the daemon may send nothing of an image's files before its reader gives up."""

_CONFIG_KEYS = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "ArgsEscaped",
)


class NotStreamable(CicError):
    """The image, or this machine, needs another way of conversion; the message says why."""

    code = ErrorCode.CONVERSION_FAILED


class UnsuitableImage(BuildFailed):
    """No SIF is made of this image: it would lead Singularity out of it, or is no tree."""

    code = ErrorCode.CONVERSION_FAILED

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"No SIF can be made of this image: {reason}.",
            step="conversion",
            hint="Leave the root folders, and what Singularity makes there, to the base image.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedImage:
    """Describes an image during its export; `config` is what a run uses of its configuration."""

    id: str
    architecture: str
    config: Mapping[str, Any]
    container: str
    reference: str


@contextlib.contextmanager
def exported(image: str) -> Iterator[ExportedImage]:
    """Yield an image with a container and a name of its own; both are removed at the end."""
    with daemon() as client, contextlib.ExitStack() as stack:
        with _explained(image):
            original = client.images.get(image)
            tag = leftovers.owner_tag()
            original.tag(REPOSITORY, tag=tag)
            stack.callback(_untag, client, original.id, f"{REPOSITORY}:{tag}")
            container = _never_started(client, stack, original, tag)
        attributes = original.attrs
        config = {
            key: attributes["Config"][key] for key in _CONFIG_KEYS if attributes["Config"].get(key)
        }
        yield ExportedImage(
            id=original.id,
            architecture=attributes["Architecture"],
            config=config,
            container=container,
            reference=f"{REPOSITORY}:{tag}",
        )


@contextlib.contextmanager
def exported_files(image: str, *, timeout_s: float) -> Iterator[int]:
    """Yield a descriptor to read an image's files from, as a tar; none of its programs runs.

    The image gets no name meanwhile: one with a name counts as one that passed its checks.

    Raises `ServiceError` for an image that is not there, and `NotStreamable`.
    """
    with daemon() as client, contextlib.ExitStack() as stack:
        with _explained(image):
            original = client.images.get(image)
            container = _never_started(client, stack, original, leftovers.owner_tag())
        connection = export_socket(container)
        if connection is not None:
            stack.enter_context(connection)
            silence = struct.pack("ll", SILENCE_S, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
            yield connection.fileno()
            return
        command = export_command(container, timeout_s=timeout_s)
        process = stack.enter_context(started(command, stdout=subprocess.PIPE))
        assert process.stdout is not None
        yield process.stdout.fileno()


@contextlib.contextmanager
def _explained(image: str) -> Iterator[None]:
    """Raise what the daemon says of an image in the block as errors of ours."""
    try:
        yield
    except docker.errors.ImageNotFound:
        raise ServiceError(
            f"The image {image} is not in the Docker daemon.", code=ErrorCode.CONVERSION_FAILED
        ) from None
    except docker.errors.APIError as error:
        raise NotStreamable(
            f"docker does not export the image: {error.explanation or error}"
        ) from error


def _never_started(
    client: docker.DockerClient,
    stack: contextlib.ExitStack,
    image: docker.models.images.Image,
    tag: str,
) -> str:
    """Return a container of an image, whose files the daemon hands out, until the stack ends."""
    container = str(
        client.api.create_container(
            image.id,
            command=["/never-started"],
            labels={REPOSITORY: tag},
            platform=_platform(image.attrs),
            network_disabled=True,
        )["Id"]
    )
    stack.callback(_remove_container, client, container)
    return container


def is_converted(names: Collection[str]) -> bool:
    """Return whether an image with these names is being converted."""
    return any(name.startswith(f"{REPOSITORY}:") for name in names)


def sweep() -> int:
    """Remove what killed conversions left, and return how many things that were."""
    removed = 0
    with daemon() as client:
        for container, tag in labelled_containers(REPOSITORY):
            if leftovers.is_dead(tag):
                _remove_container(client, container)
                removed += 1
        for image in client.api.images(REPOSITORY):
            for reference in image.get("RepoTags") or ():
                repository, _, tag = reference.partition(":")
                if repository == REPOSITORY and leftovers.is_dead(tag):
                    removed += _untag(
                        client, image["Id"], reference, also_last=leftovers.is_old(tag)
                    )
    return removed


def _platform(attributes: Mapping[str, Any]) -> str:
    variant = attributes.get("Variant")
    return f"{attributes['Os']}/{attributes['Architecture']}" + (f"/{variant}" if variant else "")


def _untag(
    client: docker.DockerClient, image_id: str, reference: str, *, also_last: bool = False
) -> bool:
    """Remove our name, and return whether it is gone.

    With the only name that is left, the image goes, too: that is for `also_last` alone.
    """
    with contextlib.suppress(docker.errors.APIError):
        if also_last or len(client.images.get(image_id).tags) > 1:
            client.images.remove(reference, noprune=True)
            return True
    return False


def _remove_container(client: docker.DockerClient, container: str) -> None:
    with contextlib.suppress(docker.errors.APIError):
        client.api.remove_container(container, v=True, force=True)


def export_socket(container: str) -> socket.socket | None:
    """Return a connection with a container's files as a tar; None if the daemon has no socket here.

    Asked in HTTP/1.0, the daemon sends them as they are until it closes the connection. The program
    `docker` does the same for any daemon, and costs 0.8 s of a processor per GB more, a tenth of a
    whole conversion.

    Raises `NotStreamable` when the daemon does not send them.
    """
    path = _socket_path(os.environ)
    if path is None:
        return None
    with contextlib.ExitStack() as unless_it_works:
        connection = unless_it_works.enter_context(socket.socket(socket.AF_UNIX))
        try:
            connection.settimeout(DAEMON_TIMEOUT_S)
            connection.connect(path)
            connection.sendall(
                f"GET /containers/{container}/export HTTP/1.0\r\nHost: docker\r\n\r\n".encode()
            )
            status, error = _answer(connection)
        except OSError as refused:
            raise NotStreamable(f"docker does not export the image: {refused}") from refused
        if status != "200":
            raise NotStreamable(f"docker does not export the image: {error or status}")
        connection.settimeout(None)  # its reader waits for as long as it takes
        unless_it_works.pop_all()
    return connection


def _socket_path(environ: Mapping[str, str]) -> str | None:
    """Return the socket at which the Docker SDK reaches the daemon, if it is of this machine."""
    scheme, _, path = (environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock").partition("://")
    return path if scheme == "unix" and path else None


def _answer(connection: socket.socket) -> tuple[str, str]:
    """Take the head of an HTTP answer from a connection; return its status and error text."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # a byte at a time: not one of the body's may be lost
        if not (byte := connection.recv(1)) or len(head) > MAX_ANSWER_BYTES:
            return "no answer", ""
        head += byte
    status = head.decode("latin-1").split(" ", 2)[1]
    return status, "" if status == "200" else connection.recv(MAX_ANSWER_BYTES).decode(
        "utf-8", "replace"
    ).strip()


def export_command(container: str, *, timeout_s: float) -> Command:
    """Return the command that writes a container's files to standard output as a tar.

    It works with a daemon on any machine.
    """
    return Command(name="docker export", argv=("docker", "export", container), timeout_s=timeout_s)


def originals_command(image: ExportedImage, *, platform: str, timeout_s: float) -> Command:
    """Return the command that writes the files as the image has them: slower, sorted by path."""
    return Command(
        name="docker buildx build",
        timeout_s=timeout_s,
        stdin=f"FROM {image.reference}\n".encode(),
        argv=(
            "docker",
            "buildx",
            "build",
            "--builder=default",
            "--progress=plain",
            "--provenance=false",
            f"--platform={platform}",
            "--output=type=tar,dest=-",
            "-",
        ),
    )


def originals(
    image: ExportedImage,
    *,
    platform: str,
    timeout_s: float,
    log: Path,
    cancel: CancelToken | None = None,
) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return the members of the image that the exported stream hides, folders first.

    Raises `NotStreamable` when they cannot be read, and `UnsuitableImage` when `/dev` or `/etc` is
    not a folder: then the stream shows another tree than the image has.
    """
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    command = originals_command(image, platform=platform, timeout_s=timeout_s)
    try:
        with log.open("wb") as errors, started(command, stdout=-1, stderr=errors) as process:
            with tarfile.open(fileobj=process.stdout, mode="r|") as stream:
                for member in stream:
                    if cancel is not None:
                        cancel.check()
                    if _is_past_etc(member.name):
                        return members
                    if (read := _original(stream, member)) is not None:
                        members.append(read)
            if process.wait() != 0:
                raise NotStreamable("docker buildx does not show the image's files")
    except tarfile.TarError as error:
        raise NotStreamable(
            f"docker buildx does not show the image's files: {_last_line(log)}"
        ) from error
    return members


def _is_past_etc(name: str) -> bool:
    """Return whether the sorted stream is behind `/etc`.

    Singularity's own folder and the like begin with a dot, so they come before it.
    """
    return name.split("/")[0] > "etc"


def _original(
    stream: tarfile.TarFile, member: tarfile.TarInfo
) -> tuple[tarfile.TarInfo, bytes] | None:
    name = member.name.rstrip("/")
    if name in ("dev", "etc") and not member.isdir():
        raise UnsuitableImage(f"its /{name} is not a folder")
    if name not in HIDDEN and not (name in HIDDEN_IF_LINK and member.issym()):
        return None
    if member.islnk() or member.size > MAX_HIDDEN_BYTES:
        raise UnsuitableImage(f"its /{name} is a hard link or very large")
    body = stream.extractfile(member) if member.isreg() else None
    return member, body.read() if body is not None else b""


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it wrote nothing"


def empty_archive(image: ExportedImage, *, architecture: str) -> bytes:
    """Return an archive as `docker save` makes it, with this image's configuration and no files."""
    layer = _tar([])
    digest = _sha256(layer)
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": dict(image.config),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    manifest = [
        {
            "Config": f"{_sha256(config)}.json",
            "RepoTags": [f"{REPOSITORY}:empty"],
            "Layers": ["layer.tar"],
        }
    ]
    return _tar(
        [
            (f"{_sha256(config)}.json", config),
            ("layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ]
    )


def _tar(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
