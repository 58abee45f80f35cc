"""Builds the arguments of the `docker buildx` commands, which the caller runs."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import docker
import docker.errors

from image_builder.docker.daemon import daemon
from image_builder.errors import ErrorCode, ServiceError, Unavailable
from image_builder.host.process import Command, ProcessFailed, Runner
from image_builder.host.secrets import Secret
from image_builder.request import cpu_targets
from image_builder.settings import BuildSettings

NONCE_ARGUMENT = "CIC_NONCE"
PLUGIN_WAS_ENDED = 255
"""How `docker` itself ends when a signal ended its plugin, such as buildx."""
CACHE_TIMEOUT_S = 600
_TOLD = re.compile(r"(Private|Total):\s+([0-9.]+)\s*([kMGT]?B)\s*$", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


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
    cache_from: Sequence[str] = (),
    cache_to: str | None = None,
    attested: Sequence[str] = (),
    without_network: bool = False,
    hidden: Sequence[Secret] = (),
) -> Command:
    """Return the `docker buildx build` of one stage.

    `output` is buildx's own notation (`type=local,dest=…`). Labels and build arguments never begin
    an option: each is one argument behind an `=`. A `nonce` that no build had before makes every
    layer anew, and is the same for both stages of one build. `cgroup` is the control group that
    build steps run in. `cache_from` and `cache_to` are references in an image registry at which
    layers are found and put. `attested` is what the image is attested with, in buildx's notation
    (`type=provenance,mode=min`). `metadata_file` is where buildx writes what it made. `hidden` is
    what no line of its output may show. Steps `without_network` have a loopback interface alone.
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
    if without_network:
        argv.append("--network=none")
    if cgroup is not None:
        argv.append(f"--cgroup-parent={cgroup}")
    argv += [f"--cache-from=type=registry,ref={reference}" for reference in cache_from]
    if cache_to is not None:
        argv.append(f"--cache-to=type=registry,ref={cache_to},mode=max,ignore-error=true")
    argv += [f"--label={key}={value}" for key, value in sorted(labels.items())]
    argv += [f"--secret=id={name},src={path}" for name, path in sorted(secrets.items())]
    argv += [f"--build-context={name}={path}" for name, path in sorted(build_contexts.items())]
    proxies = proxy_arguments(settings)
    argv += [f"--build-arg={name}" for name in proxies]  # buildx reads the values where ps does not
    if nonce:
        argv.append(f"--build-arg={NONCE_ARGUMENT}={nonce}")
    if metadata_file is not None:
        argv.append(f"--metadata-file={metadata_file}")
    argv += [f"--output={output}", str(context)]
    return Command(
        name="docker buildx build",
        argv=tuple(argv),
        env={**environment, **proxies},
        secrets=tuple(hidden),
        timeout_s=settings.build_timeout_s,
        quiet_timeout_s=settings.quiet_timeout_s,
    )


def proxy_arguments(settings: BuildSettings) -> dict[str, str]:
    """Return BuildKit's predefined build arguments, which reach every step and stay in no layer.

    A password must not reach a description's code: proxies with one are build secrets of the other
    steps (`recipe.dockerfile.site_secrets`).
    """
    if not settings.has_plain_proxies:
        return {}
    return {name: value for key, value in settings.proxies.items() for name in (key, key.upper())}


def image_id_from_metadata(metadata: str) -> str:
    """Return the daemon's id of the image that a buildx made, from the `metadata` it wrote.

    Docker's own store names an image after its configuration, and containerd's after its manifest.
    """
    written = json.loads(metadata)
    with daemon() as client:
        for key in ("containerimage.config.digest", "containerimage.digest"):
            with contextlib.suppress(docker.errors.ImageNotFound):
                if key in written:
                    return str(client.images.get(written[key]).id)
    raise ServiceError(
        "The image that buildx made is not in the Docker daemon.",
        hint="Does something on this machine remove images without a name?",
    )


def cache_command(settings: BuildSettings, *, keep_bytes: int | None = None) -> Command:
    """Return the command that reports how large the build cache is.

    With `keep_bytes`, it removes content down to that size instead, oldest use first. BuildKit
    keeps what a running build uses.
    """
    builder = (f"--builder={settings.buildx_builder}",) if settings.buildx_builder else ()
    prune = ("du",) if keep_bytes is None else ("prune", "--force", f"--keep-storage={keep_bytes}")
    return Command(
        name=f"docker buildx {prune[0]}",
        argv=("docker", "buildx", *prune, *builder),
        timeout_s=CACHE_TIMEOUT_S,
    )


def cache_bytes(command: Command, run: Runner) -> int:
    """Return what a `cache_command` reports: how much of the cache can be freed, or how much was.

    What the cache shares with images is freed with those, and reported separately where there is
    any. Raises `Unavailable`.
    """
    try:
        said = run(command, capture_stdout=True).stdout.decode("utf-8", "replace")
    except ProcessFailed as error:
        raise Unavailable(
            f"The build cache cannot be looked at: {(error.tail or [str(error)])[-1]}",
            code=ErrorCode.DOCKER_UNAVAILABLE,
        ) from error
    sizes = {
        match[1]: match for line in said.splitlines() if (match := _TOLD.match(line)) is not None
    }
    size = sizes.get("Private") or sizes.get("Total")
    return 0 if size is None else round(float(size[2]) * _UNITS[size[3].upper()])


def sees_local_images(settings: BuildSettings, run: Runner) -> bool:
    """Return whether the builder uses the daemon's own images.

    The default builder does, and others of the docker driver.
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
    """Return the platforms that the builder's nodes have, and those that they emulate.

    Each node names its own platform first. Raises `CicError`.
    """
    named = ("--", settings.buildx_builder) if settings.buildx_builder else ()
    argv = ("docker", "buildx", "inspect", "--bootstrap", *named)
    lines: list[str] = []
    run(Command(name="docker buildx inspect", argv=argv, timeout_s=60), on_line=lines.append)
    nodes = [_platforms(line) for line in lines if line.startswith("Platforms:")]
    native = list(dict.fromkeys(node[0] for node in nodes if node))
    return native, sorted({name for node in nodes for name in node} - set(native))


def _platforms(line: str) -> list[str]:
    """Return those that images can be built for, of `Platforms: linux/amd64*, linux/386`."""
    names = (part.strip(" *") for part in line.partition(":")[2].split(","))
    return list(dict.fromkeys(name for name in map(_known_platform, names) if name is not None))


def _known_platform(text: str) -> str | None:
    try:
        return cpu_targets.parse_platform(text)
    except cpu_targets.UnknownName:
        return None
