"""Runs a program of an image in a container without network, and removes it in every case.

The image's author decides what its programs do, `/bin/sh` among them. So each container has a name,
limits of memory, processes, CPU, time and output, and no log; it is started by `docker run` as a
process of ours, and removed by name when that has ended, however it ended. What a killed service
leaves is removed by its label. The Docker SDK is not used here: its wait has no limit.
"""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Sequence
from pathlib import Path

from image_builder.docker import daemon, leftovers
from image_builder.docker.daemon import BaseImageUnavailable
from image_builder.docker.isolation import cgroup
from image_builder.errors import CicError, ErrorCode, LimitReached
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, LineSink, ProcessFailed, Runner, run
from image_builder.settings import BuildSettings

LABEL = "cic-container"
PROBE_TIMEOUT_S = 120.0
PROBE_OUTPUT_BYTES = 1024**2
GIB = 1024**3
DOCKERS_OWN_FAILURE = 125
"""What `docker run` ends with when there was no container to run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """Describes what runs, and within which limits; `name` is what messages call it."""

    name: str
    image: str
    platform: str | None
    """None: the image's own."""
    timeout_s: float
    program: tuple[str, ...]
    """Its first word stands for the image's entry point unless that is to be used."""
    through_entrypoint: bool = False
    network: str = "none"
    memory_bytes: int = GIB
    pids: int = 256
    cpus: float = 1
    options: tuple[str, ...] = ()
    """More options of `docker run`, which no user wrote."""
    cgroup: str | None = None
    max_stdout_bytes: int | None = None
    files: Path | None = None
    """A folder of this machine that is copied to `files_at` in the container before it starts."""
    files_at: str = ""


def run_command(container: Container, *, name: str, tag: str, verb: str = "run") -> Command:
    """Return the `docker run`, or `create`, of a container.

    The program's words follow the image, so that none is read as an option.
    """
    entrypoint = () if container.through_entrypoint else (f"--entrypoint={container.program[0]}",)
    words = container.program if container.through_entrypoint else container.program[1:]
    return Command(
        name=container.name,
        timeout_s=container.timeout_s,
        max_stdout_bytes=container.max_stdout_bytes,
        argv=(
            "docker",
            verb,
            f"--name={name}",
            f"--label={LABEL}={tag}",
            *((f"--platform={container.platform}",) if container.platform else ()),
            "--pull=never",
            "--log-driver=none",
            f"--network={container.network}",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            f"--memory={container.memory_bytes}",
            f"--pids-limit={container.pids}",
            f"--cpus={container.cpus:g}",
            *((f"--cgroup-parent={container.cgroup}",) if container.cgroup else ()),
            *container.options,
            *entrypoint,
            container.image,
            *words,
        ),
    )


def copy_command(files: Path, name: str, target: str) -> Command:
    """Return the `docker cp` of a folder into a container, for a remote daemon, too."""
    return Command(
        name="docker cp",
        argv=("docker", "cp", "--quiet", str(files), f"{name}:{target}"),
        timeout_s=PROBE_TIMEOUT_S,
    )


def run_container(
    container: Container,
    *,
    runner: Runner = run,
    cancel: CancelToken | None = None,
    on_line: LineSink | None = None,
    capture_stdout: bool = False,
) -> bytes:
    """Run a container to its end, remove it, and return what it printed if that is captured.

    Raises what the runner raises.
    """
    name = f"cic-{uuid.uuid4().hex}"
    tag = leftovers.owner_tag()
    try:
        command = run_command(container, name=name, tag=tag)
        if container.files is not None:
            runner(run_command(container, name=name, tag=tag, verb="create"), cancel=cancel)
            runner(copy_command(container.files, name, container.files_at), cancel=cancel)
            argv = ("docker", "start", "--attach", name)
            command = dataclasses.replace(command, argv=argv)
        done = runner(command, on_line=on_line, cancel=cancel, capture_stdout=capture_stdout)
    finally:
        daemon.remove_container(name)
    return done.stdout


def run_probe(
    image: str,
    platform: str | None,
    program: Sequence[str],
    *,
    timeout_s: float = PROBE_TIMEOUT_S,
    max_output_bytes: int = PROBE_OUTPUT_BYTES,
    network: str = "none",
    cgroup: str | None = None,
    runner: Runner = run,
    cancel: CancelToken | None = None,
) -> str:
    """Return what a program of an image prints.

    Raises `BaseImageUnavailable` when the image does not run it here, within its limits.
    """
    container = Container(
        name=f"{program[0]} of the image",
        image=image,
        platform=platform,
        program=tuple(program),
        timeout_s=timeout_s,
        network=network,
        cgroup=cgroup,
        max_stdout_bytes=max_output_bytes,
    )
    try:
        output = run_container(container, runner=runner, cancel=cancel, capture_stdout=True)
    except (ProcessFailed, LimitReached) as error:
        if isinstance(error, LimitReached) and error.code is ErrorCode.TOTAL_TIMEOUT:
            raise
        raise BaseImageUnavailable(
            f"The image {image} does not run here: {error.message[:300]}"
        ) from error
    return output.decode("utf-8", "replace")


def cgroup_for(settings: BuildSettings) -> str | None:
    """Return the control group of build steps, where the daemon takes it by name.

    With systemd's driver, it takes slices only.
    """
    parent = cgroup.cgroup_of(settings)
    return parent if parent is not None and _has_plain_cgroups() else None


@functools.lru_cache(maxsize=1)
def _has_plain_cgroups() -> bool:
    try:
        return daemon.cgroup_driver() == "cgroupfs"
    except CicError:
        return False


def sweep() -> int:
    """Remove the containers that killed processes left; return how many there were."""
    return sum(
        daemon.remove_container(container)
        for container, tag in daemon.labelled_containers(LABEL)
        if leftovers.is_dead(tag)
    )
