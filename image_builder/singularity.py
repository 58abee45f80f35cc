"""From an image in the Docker daemon to a SIF: made by Singularity or Apptainer, checked, and only then offered.

The caller's destination appears in one step, when everything was checked. What becomes of it is written beside it,
and what conversion needs meanwhile lies in a scratch folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from image_builder import sif
from image_builder.errors import ErrorCode, ServiceError, ToolMissing
from image_builder.process import CancelToken, Command, LineSink, ProcessFailed, Runner, run
from image_builder.settings import BuildSettings
from image_builder.storage import sha256_of

PROGRAMS = ("apptainer", "singularity")
"""What converts, in the order of preference; Apptainer answers to both names."""

BUILD = "build"


class ConversionFailed(ServiceError):
    """The image is there, and no SIF could be made of it."""

    code = ErrorCode.CONVERSION_FAILED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """A SIF that was made and checked. `method` says how: `stream` or `build`."""

    sha256: str
    size_bytes: int
    method: str
    duration_s: float


def convert(image: str, destination: Path, *, platform: str, settings: BuildSettings, scratch: Path | None = None,
            runner: Runner = run, cancel: CancelToken | None = None, on_line: LineSink | None = None) -> Conversion:
    """Make a SIF for `platform` of an image in the daemon (its id, or a reference) at `destination`.

    `scratch` is a folder for temporary files; without it they lie beside the destination. Raises `ToolMissing`, `ConversionFailed`, `LimitReached` or `Cancelled`; then there is no file at `destination`.
    """
    begin = time.monotonic()
    with _folder(destination.parent) as beside, _folder(scratch or destination.parent) as work:
        made = beside / "made.sif"
        build(image, made, scratch=work, platform=platform, settings=settings, runner=runner, cancel=cancel,
              on_line=on_line)
        verify(made, platform=platform)
        with open(made, "rb") as file:
            sha256 = sha256_of(file)
        size_bytes = made.stat().st_size
        os.replace(made, destination)
    return Conversion(sha256=sha256, size_bytes=size_bytes, method=BUILD, duration_s=time.monotonic() - begin)


def verify(path: Path, *, platform: str) -> None:
    """Raise `ConversionFailed` unless this is a whole SIF for `platform`."""
    try:
        sif.verify(path, platform=platform)
    except (sif.BadSif, OSError) as error:
        raise ConversionFailed(f"The SIF that was made is not usable: {error}.") from error


def program() -> str:
    """The path of Singularity or Apptainer. Raises `ToolMissing` when neither is installed."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise ToolMissing("Neither apptainer nor singularity is installed, and the image has to become a SIF.",
                          hint="Install one of them, or ask for \"container_engine\": \"docker\".")
    return found


def build(image: str, made: Path, *, scratch: Path, platform: str, settings: BuildSettings, runner: Runner = run,
          cancel: CancelToken | None = None, on_line: LineSink | None = None) -> None:
    """Let Singularity's own `build` make the SIF. Slower than streaming, and it takes every image."""
    source = f"docker-daemon:{image}"
    if not _daemon_is_local(os.environ):
        archive = scratch / "image.tar"
        _run(Command(name="docker save", argv=("docker", "save", f"--output={archive}", image),
                     timeout_s=settings.convert_timeout_s), runner, cancel, on_line)
        source = f"docker-archive:{archive}"
    command = build_command(program(), source, made, scratch=scratch, platform=platform, settings=settings,
                            sudo=needs_sudo(settings))
    try:
        _run(command, runner, cancel, on_line)
    finally:
        if needs_sudo(settings):
            _own(scratch, runner)
            _own(made.parent, runner)


def build_command(singularity: str, source: str, made: Path, *, scratch: Path, platform: str, settings: BuildSettings,
                  sudo: bool) -> Command:
    """`singularity build`, with its temporary files and cache in `scratch`; `sudo` keeps no environment but this."""
    environment = {f"{prefix}_{name}": str(scratch) for prefix in ("APPTAINER", "SINGULARITY")
                   for name in ("TMPDIR", "CACHEDIR")}
    argv = [singularity, "build", "--force", "--arch", platform.split("/")[1],
            "--mksquashfs-args", mksquashfs_arguments(settings), str(made), source]
    if sudo:
        handed_on = environment | {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
        argv = ["sudo", "-n", "env", *(f"{name}={value}" for name, value in sorted(handed_on.items())), *argv]
    return Command(name=f"{Path(singularity).name} build", argv=tuple(argv), env=environment, cwd=scratch,
                   timeout_s=settings.convert_timeout_s)


def mksquashfs_arguments(settings: BuildSettings) -> str:
    """The compressor and level of the settings, in mksquashfs's notation. xz and lz4 have no level."""
    level = settings.sif_compression_level
    arguments = f"-comp {settings.sif_compressor}"
    return arguments if level is None else f"{arguments} -Xcompression-level {level}"


def needs_sudo(settings: BuildSettings) -> bool:
    """`singularity_sudo` means `sudo -n`, and nothing when already root."""
    return settings.singularity_sudo and os.geteuid() != 0


def _daemon_is_local(environ: Mapping[str, str]) -> bool:
    """Whether `docker-daemon:` reaches the daemon: Singularity knows sockets alone."""
    return environ.get("DOCKER_HOST", "unix://").startswith("unix://") and "DOCKER_CONTEXT" not in environ


def _own(folder: Path, runner: Runner) -> None:
    """Take over what root made in a folder."""
    owner = f"{os.geteuid()}:{os.getegid()}"
    argv = ("sudo", "-n", "chown", "--recursive", "--no-dereference", owner, "--", str(folder))
    runner(Command(name="chown", argv=argv, timeout_s=600))


def _run(command: Command, runner: Runner, cancel: CancelToken | None, on_line: LineSink | None) -> None:
    try:
        runner(command, on_line=on_line, cancel=cancel)
    except ProcessFailed as error:
        raise ConversionFailed(f"The image could not be converted: {error.message}", hint=_hint(error)) from error


def _hint(error: ProcessFailed) -> str:
    text = "\n".join(error.tail).lower()
    if "no space left" in text:
        return "The disk of tmp_folder is full."
    if "password is required" in text or "no tty present" in text:
        return "singularity_sudo is set: allow this user to run it with sudo without a password, or unset it."
    return ""


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A private folder, removed at the end with what is in it."""
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
