"""Questions to the Docker daemon and the image registry, and the buildx calls.

Questions go through the Docker SDK; images are built with `docker buildx`, and pushed with `docker
push`. Every command's arguments are made in one function and run in another. Credentials pass to
the daemon over its socket, or lie in a build's own DOCKER_CONFIG.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
import ipaddress
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests
from docker.utils import parse_repository_tag

from image_builder import failures, targets
from image_builder.errors import CicError, ErrorCode, NoSpace, ServiceError, Unavailable
from image_builder.process import CancelToken, Command, LineSink, ProcessFailed, Runner
from image_builder.settings import BuildSettings, RegistrySettings

IDENTITY_LABEL = "cic.identity"
WORKFLOW_LABEL = "cic.workflow"
BASE_NAME = "BASE"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
NONCE_ARGUMENT = "CIC_NONCE"
DAEMON_TIMEOUT_S = 60
PROBE_TIMEOUT_S = 120
PLUGIN_WAS_ENDED = 255
"""How `docker` itself ends when a signal ended its plugin, such as buildx."""
CACHE_TIMEOUT_S = 600

_PUSHED = re.compile(r"\bdigest: (sha256:[0-9a-f]{64})\b")
_TOLD = re.compile(r"(Private|Total):\s+([0-9.]+)\s*([kMGT]?B)\s*$", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
TAR_MARGIN_BYTES = 64 * 1024


class BaseImageUnavailable(Unavailable):
    """The base image is neither here nor in its registry."""

    code = ErrorCode.BASE_IMAGE_UNAVAILABLE


class PushFailed(ServiceError):
    """The image registry refused the image or did not take it."""

    code = ErrorCode.PUSH_FAILED


@contextlib.contextmanager
def daemon(timeout_s: float = DAEMON_TIMEOUT_S) -> Iterator[docker.DockerClient]:
    """A client of the Docker daemon. A daemon that does not answer is `Unavailable`."""
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
        f"The Docker daemon does not answer: {_first_line(error)}",
        hint="Start it, and check that this user may use its socket.",
        code=ErrorCode.DOCKER_UNAVAILABLE,
    )


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "explanation", None) or error)
    return text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__


def resolve_base(
    reference: str, platform: str, registry: RegistrySettings, *, local: bool = True
) -> tuple[str, str]:
    """What `FROM` has to name so that it means exactly this image, and the image's digest.

    An image that exists in the daemon alone has no registry digest: it gets a tag that holds its
    content's id. `local` False is for builders that do not see the daemon's images. Raises
    `BaseImageUnavailable`.
    """
    with daemon() as client:
        image = _local_image(client, reference) if local else None
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
                    f"The base image {reference} cannot be had: {_first_line(error)}",
                    hint="Check build_cfg['base_image'], or make the image on this host.",
                ) from error
        _require_platform(image, reference, platform)
        return _pinned_tag(image, reference), image.id


def _local_image(client: docker.DockerClient, reference: str) -> Any | None:
    try:
        return client.images.get(reference)
    except docker.errors.ImageNotFound:
        return None
    except docker.errors.APIError as error:
        raise BaseImageUnavailable(
            f"The base image {reference!r} cannot be looked up: {_first_line(error)}"
        ) from error


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


def run_probe(
    reference: str, platform: str, program: Sequence[str], *, timeout_s: float = PROBE_TIMEOUT_S
) -> str:
    """What a program prints in a container of the image, which has no network, no rights and little
    memory.

    Raises `BaseImageUnavailable` when the image cannot run it here.
    """
    return _run(reference, program, timeout_s=timeout_s, platform=platform, network_mode="none")


def _run(reference: str, program: Sequence[str], *, timeout_s: float, **options: Any) -> str:
    with daemon(timeout_s) as client:
        try:
            output: bytes = client.containers.run(
                reference,
                list(program[1:]),
                entrypoint=program[0],
                remove=True,
                mem_limit="1g",
                pids_limit=256,
                cap_drop=["ALL"],
                stdout=True,
                stderr=False,
                **options,
            )
        except docker.errors.DockerException as error:
            raise BaseImageUnavailable(
                f"The image {reference} does not run here: {_first_line(error)}"
            ) from error
    return output.decode("utf-8", "replace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bridge:
    """The network of build steps, and of containers that name no other: its interface and this
    host's address on it.
    """

    interface: str
    gateway: str


def default_bridge() -> Bridge:
    """Docker's default bridge. Raises `Unavailable`, or `ServiceError` for a daemon without one."""
    with daemon() as client:
        try:
            attributes = client.networks.get("bridge").attrs
        except docker.errors.APIError as error:
            raise ServiceError(f"Docker has no default bridge: {_first_line(error)}") from error
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
    """The daemon's version, such as 26.1.5."""
    with daemon() as client:
        return str(client.version()["Version"])


def run_on_bridge(
    reference: str, program: Sequence[str], *, timeout_s: float = PROBE_TIMEOUT_S
) -> str:
    """What a program prints in a container that is on the default bridge, as a build step is.
    Nothing is pulled.
    """
    with daemon() as client:
        if _local_image(client, reference) is None:
            raise BaseImageUnavailable(f"The image {reference} is not on this machine.")
    return _run(reference, program, timeout_s=timeout_s, network_mode="bridge")


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


def build_command(
    *,
    context: Path,
    platform: str,
    settings: BuildSettings,
    target: str,
    environment: Mapping[str, str],
    labels: Mapping[str, str],
    secrets: Mapping[str, Path],
    build_contexts: Mapping[str, Path],
    output: str,
    nonce: str,
    cgroup: str | None = None,
    metadata_file: Path | None = None,
    cache_tag: str | None = None,
    attested: Sequence[str] = (),
) -> Command:
    """The `docker buildx build` of one stage. `output` is buildx's own notation
    (`type=local,dest=…`).

    Labels and build arguments never begin an option: each is one argument behind an `=`. A `nonce`
    that no build had before makes every layer anew, and is the same for both stages of one build.
    `cgroup` is the control group that build steps run in. `cache_tag` is where in the site's
    `build_cache` this build's layers are found and put. `attested` is what the image is attested
    with, in buildx's notation (`type=provenance,mode=min`). `metadata_file` is where buildx tells
    what it made.
    """
    attestations = [f"--attest={what}" for what in attested] or ["--provenance=false"]
    argv = [
        "docker",
        "buildx",
        "build",
        "--progress=plain",
        *attestations,
        f"--platform={platform}",
        f"--target={target}",
        f"--file={context / 'Dockerfile'}",
    ]
    if settings.buildx_builder:
        argv.append(f"--builder={settings.buildx_builder}")
    if cgroup is not None:
        argv.append(f"--cgroup-parent={cgroup}")
    if settings.build_cache and cache_tag is not None:
        kept = f"type=registry,ref={settings.build_cache}:{cache_tag}"
        argv += [f"--cache-from={kept}", f"--cache-to={kept},mode=max,ignore-error=true"]
    argv += [f"--label={key}={value}" for key, value in sorted(labels.items())]
    argv += [f"--secret=id={name},src={path}" for name, path in sorted(secrets.items())]
    argv += [f"--build-context={name}={path}" for name, path in sorted(build_contexts.items())]
    argv += [f"--build-arg={name}={value}" for name, value in proxy_arguments(settings).items()]
    if nonce:
        argv.append(f"--build-arg={NONCE_ARGUMENT}={nonce}")
    if metadata_file is not None:
        argv.append(f"--metadata-file={metadata_file}")
    argv += [f"--output={output}", str(context)]
    return Command(
        name="docker buildx build",
        argv=tuple(argv),
        env=environment,
        timeout_s=settings.build_timeout_s,
        quiet_timeout_s=settings.quiet_timeout_s,
    )


def cache_tag(workflow: str, step: str, platform: str) -> str:
    """Where in the site's `build_cache` the layers of a step's images lie."""
    return hashlib.sha256(f"{workflow}/{step} {platform}".encode()).hexdigest()[:16]


def proxy_arguments(settings: BuildSettings) -> dict[str, str]:
    """BuildKit's predefined build arguments: they reach every step and stay in no layer."""
    values = {
        "http_proxy": settings.http_proxy,
        "https_proxy": settings.https_proxy,
        "no_proxy": settings.no_proxy,
    }
    return {name: value for key, value in values.items() if value for name in (key, key.upper())}


def made_image(metadata: str) -> str:
    """The id in the daemon of the image that a buildx made; `metadata` is what it told of that.

    Docker's own store names an image after its configuration, and containerd's after its manifest.
    """
    told = json.loads(metadata)
    with daemon() as client:
        for key in ("containerimage.config.digest", "containerimage.digest"):
            with contextlib.suppress(docker.errors.ImageNotFound):
                if key in told:
                    return str(client.images.get(told[key]).id)
    raise ServiceError(
        "The image that buildx made is not in the Docker daemon.",
        hint="Does something on this machine remove images without a name?",
    )


def find_by_identity(identity: str, *, named: bool = False) -> str | None:
    """The id of an image in the daemon that was built with this identity; with `named` one that has
    a name, too.
    """
    with daemon() as client:
        found = client.images.list(filters={"label": f"{IDENTITY_LABEL}={identity}"})
    passed = sorted(
        (image for image in found if image.tags or not named), key=lambda image: not image.tags
    )
    return str(passed[0].id) if passed else None


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


def image_bytes(image: str) -> int | None:
    """How large an image in the daemon is, unpacked; None when there is no such image."""
    with daemon() as client:
        try:
            return int(client.images.get(image).attrs["Size"])
        except docker.errors.ImageNotFound:
            return None


def image_layers(image: str) -> tuple[str, ...]:
    """The digests of an image's unpacked layers; empty when there is no such image in the daemon."""
    with daemon() as client:
        try:
            return tuple(client.images.get(image).attrs["RootFS"].get("Layers") or ())
        except docker.errors.ImageNotFound:
            return ()


def image_labels(image: str) -> dict[str, str]:
    """The labels of an image in the daemon; empty when there is no such image."""
    return dict(image_config(image).get("Labels") or {})


def image_config(image: str) -> Mapping[str, Any]:
    """What an image in the daemon says of its containers (`WorkingDir`, ...); empty when there is
    no such image.
    """
    with daemon() as client:
        try:
            return dict(client.images.get(image).attrs.get("Config") or {})
        except docker.errors.ImageNotFound:
            return {}


def read_file(image: str, path: str, max_bytes: int) -> str | None:
    """A text file of an image; None when it is not there, no plain file, or larger than
    `max_bytes`.
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


def push_image(
    command: Command, run: Runner, *, on_line: LineSink, cancel: CancelToken
) -> str | None:
    """Push a named image and return the digest that the registry gave it.

    Raises `Unavailable` for what may pass, `PushFailed`, `NoSpace`, `LimitReached` or `Cancelled`.
    """
    digests: list[str] = []

    def hear(line: str) -> None:
        digests.extend(_PUSHED.findall(line))
        on_line(line)

    try:
        run(command, on_line=hear, cancel=cancel)
    except ProcessFailed as error:
        reason = next((line for line in reversed(error.tail) if line.strip()), str(error))
        raise _push_failed(
            command.argv[-1], reason, failures.classify(error.tail, step=failures.PUSH)
        ) from error
    return digests[-1] if digests else None


def _push_failed(image_id: str, reason: str, cause: failures.Cause) -> CicError:
    if cause.code in (ErrorCode.IMAGE_REGISTRY_UNAVAILABLE, ErrorCode.DOCKER_UNAVAILABLE):
        return Unavailable(
            f"{cause.message} It was asked to take {image_id}: {reason}",
            hint=cause.hint,
            code=cause.code,
        )
    if cause.code is ErrorCode.NO_SPACE:
        return NoSpace(
            f"{image_id} could not be pushed: {reason}", hint="Ask the operator to free some room."
        )
    return PushFailed(
        f"The image registry did not take {image_id}: {reason}",
        hint="Check registry_cfg (url, user, token, images_prefix) and the rights of that user.",
    )


def remove_image(image: str) -> None:
    """Remove an image that did not pass; one that is gone or in use is left alone."""
    with contextlib.suppress(CicError, docker.errors.APIError), daemon() as client:
        client.images.remove(image)


def remove_container(name: str) -> None:
    """End and remove a container; one that is gone is no matter."""
    with contextlib.suppress(CicError, docker.errors.APIError), daemon() as client:
        client.api.remove_container(name, force=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaemonImage:
    """An image in the daemon that this service, or another one with the same daemon, made."""

    id: str
    identity: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    size_bytes: int
    """With layers that other images share."""
    created_at: float
    """In seconds since 1970; it may be that of an equal image which was made earlier."""
    is_base: bool


def made_images() -> list[DaemonImage]:
    """The images in the daemon that were built here."""
    with daemon() as client:
        found = client.api.images(filters={"label": [IDENTITY_LABEL]})
    return [
        DaemonImage(
            id=image["Id"],
            identity=image["Labels"][IDENTITY_LABEL],
            names=_without_none(image.get("RepoTags")),
            digests=_without_none(image.get("RepoDigests")),
            size_bytes=image["Size"],
            created_at=image["Created"],
            is_base=image["Labels"].get(WORKFLOW_LABEL) == BASE_NAME,
        )
        for image in found
    ]


def _without_none(references: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(reference for reference in references or () if "<none>" not in reference)


def remove_made_image(image: DaemonImage) -> bool:
    """Remove an image with all its names. False, and nothing is done, while a container is made of
    it.
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


def cache_command(settings: BuildSettings, *, keep_bytes: int | None = None) -> Command:
    """What tells how large the build cache is; with `keep_bytes`, what empties it down to that,
    oldest use first.

    BuildKit keeps what a running build uses.
    """
    builder = (f"--builder={settings.buildx_builder}",) if settings.buildx_builder else ()
    prune = ("du",) if keep_bytes is None else ("prune", "--force", f"--keep-storage={keep_bytes}")
    return Command(
        name=f"docker buildx {prune[0]}",
        argv=("docker", "buildx", *prune, *builder),
        timeout_s=CACHE_TIMEOUT_S,
    )


def cache_bytes(command: Command, run: Runner) -> int:
    """What a `cache_command` tells: how much of the cache can be freed, or how much was. Raises
    `Unavailable`.

    What the cache shares with images goes with those, and is told apart where there is any.
    """
    try:
        said = run(command, capture_stdout=True).stdout.decode("utf-8", "replace")
    except ProcessFailed as error:
        raise Unavailable(
            f"The build cache cannot be looked at: {(error.tail or [str(error)])[-1]}",
            code=ErrorCode.DOCKER_UNAVAILABLE,
        ) from error
    told = {
        match[1]: match for line in said.splitlines() if (match := _TOLD.match(line)) is not None
    }
    size = told.get("Private") or told.get("Total")
    return 0 if size is None else round(float(size[2]) * _UNITS[size[3].upper()])


def sees_local_images(settings: BuildSettings, run: Runner) -> bool:
    """Whether the builder uses the daemon's own images: the default builder, and others of the
    docker driver.
    """
    if settings.buildx_builder is None:
        return True
    inspected = run(
        Command(
            name="docker buildx inspect",
            argv=("docker", "buildx", "inspect", "--", settings.buildx_builder),
            timeout_s=60,
        ),
        capture_stdout=True,
    )
    fields = (
        line.split(":", 1)
        for line in inspected.stdout.decode("utf-8", "replace").splitlines()
        if ":" in line
    )
    return any(key.strip() == "Driver" and value.strip() == "docker" for key, value in fields)


def builder_platforms(settings: BuildSettings, run: Runner) -> tuple[list[str], list[str]]:
    """The platforms that the builder's nodes are, and those that they emulate. Raises `CicError`.

    Each node names its own platform first.
    """
    named = ("--", settings.buildx_builder) if settings.buildx_builder else ()
    argv = ("docker", "buildx", "inspect", "--bootstrap", *named)
    lines: list[str] = []
    run(Command(name="docker buildx inspect", argv=argv, timeout_s=60), on_line=lines.append)
    nodes = [_platforms(line) for line in lines if line.startswith("Platforms:")]
    native = list(dict.fromkeys(node[0] for node in nodes if node))
    return native, sorted({name for node in nodes for name in node} - set(native))


def _platforms(line: str) -> list[str]:
    """`Platforms: linux/amd64*, linux/amd64/v2, linux/386` -> those that images can be built for."""
    found = (part.strip(" *") for part in line.partition(":")[2].split(","))
    return list(dict.fromkeys(name for name in map(_known_platform, found) if name is not None))


def _known_platform(text: str) -> str | None:
    try:
        return targets.parse_platform(text)
    except targets.UnknownName:
        return None
