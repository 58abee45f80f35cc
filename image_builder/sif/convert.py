"""Converts an image of the Docker daemon to a SIF, and checks it.

The image is streamed (`streaming.py`) where this machine can do that, and else converted by Singularity's own
`build`. That one writes into the image's files where it sees this machine's, and follows links: it gets what was
checked (`oci_layout.py`), never the image itself.

The caller's destination appears in one step, when everything is checked. The SIF is written to the same folder under
a temporary name, and other temporary files are in a scratch folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from image_builder.errors import CicError, ErrorCode, NoSpace, ServiceError, ToolMissing
from image_builder.host import sudo
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, LineSink, ProcessFailed, Runner, run
from image_builder.settings import BuildSettings
from image_builder.sif import format, oci_layout, streaming
from image_builder.sif.begun import BegunSif, begun
from image_builder.sif.docker_export import NotStreamable

PROGRAMS = ("apptainer", "singularity")
"""The programs that convert, in the order of preference; Apptainer has both names."""

STREAM, BUILD = "stream", "build"

DEFAULT_LEVELS = {"zstd": 3, "gzip": 6}
"""Levels beyond which more time saves little room; `benchmarks/levels.py` measures it."""

STREAMED_COMPRESSORS = ("zstd", "gzip", "xz")
"""The compressors of tar2sqfs that other tools read: unsquashfs does not read its lz4."""


class ConversionFailed(ServiceError):
    """The image exists, but no SIF can be made of it."""

    code = ErrorCode.CONVERSION_FAILED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """Describes a SIF that is made and checked; `method` is `stream` or `build`."""

    sha256: str
    size_bytes: int
    method: str


def convert(
    image: str,
    destination: Path,
    *,
    platform: str,
    settings: BuildSettings,
    scratch: Path | None = None,
    runner: Runner = run,
    cancel: CancelToken | None = None,
    on_line: LineSink | None = None,
    time_s: int | None = None,
    newest_s: int | None = None,
    source: str | None = None,
    evidence: format.Evidence | None = None,
    begun_sif: BegunSif | None = None,
) -> Conversion:
    """Make a SIF for `platform` at `destination`, of an image in the daemon.

    `image` is its id, or a reference. `scratch` is a folder for temporary files; without it they
    are in the destination's folder. `time_s` is the time that the SIF carries, in seconds since
    1970; without it, it is now. None of its files is newer than `newest_s`, where it is streamed.
    `source` is what it names as its origin, by default the `image`. `evidence` is put into the SIF.
    A `begun_sif` of the same files is completed. Raises `ToolMissing`, `ServiceError`,
    `LimitReached` or `Cancelled`; then there is no file at `destination`.
    """
    job = _Conversion(
        image=image,
        platform=platform,
        settings=settings,
        runner=runner,
        cancel=cancel,
        on_line=on_line or _ignore,
        time_s=int(time.time()) if time_s is None else time_s,
        newest_s=newest_s,
        source=source or image,
        evidence=evidence or format.NoEvidence(),
        begun=begun_sif,
    )
    with _folder(destination.parent) as temporary, _folder(scratch or destination.parent) as work:
        sif = temporary / "made.sif"
        try:
            method, sha256 = job.stream_or_build(sif, work)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise _no_space(error) from error
        verify(sif, platform=platform)
        size_bytes = sif.stat().st_size
        sif.replace(destination)
    return Conversion(sha256=sha256, size_bytes=size_bytes, method=method)


@contextlib.contextmanager
def begin(
    folder: Path,
    *,
    settings: BuildSettings,
    time_s: int,
    cancel: CancelToken,
    newest_s: int | None = None,
) -> Iterator[BegunSif | None]:
    """Begin a SIF of an image whose files somebody reads now; its files are in `folder` meanwhile.

    Yields None where SIFs are not streamed.
    """
    if settings.sif_compressor not in STREAMED_COMPRESSORS:
        yield None
        return
    flow = streaming.flow_of(
        folder / "image.squashfs",
        folder,
        level=level(settings),
        settings=settings,
        time_s=time_s,
        newest_s=newest_s,
        cancel=cancel,
    )
    with begun(flow) as sif:
        yield sif


def verify(path: Path, *, platform: str) -> None:
    """Raise `ConversionFailed` unless this is a whole SIF for `platform`."""
    try:
        format.verify(path, platform=platform)
    except (format.BadSif, OSError) as error:
        raise ConversionFailed(f"The SIF that was made is not usable: {error}.") from error


def program() -> str:
    """Return the path of Singularity or Apptainer.

    Raises `ToolMissing` when neither is installed.
    """
    path = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if path is None:
        raise ToolMissing(
            "Neither apptainer nor singularity is installed, and the image has to become a SIF.",
            hint='Install one of them, or ask for "container_engine": "docker".',
        )
    return path


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Conversion:
    """Converts one image in either way."""

    image: str
    platform: str
    settings: BuildSettings
    runner: Runner
    cancel: CancelToken | None
    on_line: LineSink
    time_s: int
    newest_s: int | None
    source: str
    evidence: format.Evidence
    begun: BegunSif | None

    def stream_or_build(self, made: Path, scratch: Path) -> tuple[str, str]:
        """Make the SIF, quickly if possible; return the method and the SIF's sha256."""
        try:
            return STREAM, self.stream(made, scratch)
        except NotStreamable as reason:
            self.on_line(
                f"Converting with {Path(program()).name} build, which takes longer: {reason.message}"
            )
        return BUILD, self.build(made, scratch)

    def stream(self, made: Path, scratch: Path) -> str:
        if self.settings.sif_compressor not in STREAMED_COMPRESSORS:
            raise NotStreamable(f"streaming cannot make {self.settings.sif_compressor}")
        if self.begun is not None and self.begun.is_usable:
            self.on_line("Completing the squashfs that was begun while the image was looked at")
        else:
            self.on_line(f"Streaming the image into squashfs ({self.settings.sif_compressor})")
        return streaming.stream(
            self.image,
            made,
            source=self.source,
            build_empty=self._build_empty,
            scratch=scratch,
            platform=self.platform,
            level=level(self.settings),
            settings=self.settings,
            on_line=self.on_line,
            time_s=self.time_s,
            newest_s=self.newest_s,
            evidence=self.evidence,
            begun=self.begun,
            runner=self.runner,
            cancel=self.cancel,
        )

    def build(self, made: Path, scratch: Path) -> str:
        """Let Singularity's own `build` make the SIF, of checked files that cannot lead it out."""
        layout = scratch / "image"
        self._write_layout(layout, scratch)
        command = build_command(
            program(),
            f"oci:{layout.name}",
            made,
            scratch=scratch,
            platform=self.platform,
            settings=self.settings,
            time_s=self.time_s,
        )
        if needs_sudo(self.settings):
            self._run_as_root(command, scratch, made.parent)
        else:
            self._run(command)
        return self._rewritten(made)

    def _rewritten(self, made: Path) -> str:
        """Put time and evidence into a SIF that Singularity made, and return its sha256."""
        original = made.with_suffix(".original")
        made.rename(original)
        try:
            return format.rewrite(original, made, time_s=self.time_s, evidence=self.evidence)
        except format.BadSif as error:
            raise ConversionFailed(f"The SIF that was made is not usable: {error}.") from error
        finally:
            original.unlink()

    def _write_layout(self, layout: Path, scratch: Path) -> None:
        try:
            oci_layout.write(
                self.image,
                layout,
                scratch=scratch,
                settings=self.settings,
                on_line=self.on_line,
                time_s=self.time_s,
                cancel=self.cancel,
            )
        except NotStreamable as error:
            raise ConversionFailed(f"The image could not be converted: {error.message}") from error

    def _build_empty(self, archive: Path, made: Path) -> None:
        command = build_command(
            program(),
            f"docker-archive:{archive.name}",
            made,
            scratch=archive.parent,
            platform=self.platform,
            settings=self.settings,
            time_s=self.time_s,
        )
        try:
            self.runner(command, cancel=self.cancel)
        except ProcessFailed as error:
            raise NotStreamable(
                f"an image without files does not convert: {error.message}"
            ) from error

    def _run_as_root(self, command: Command, scratch: Path, target: Path) -> None:
        leave = scratch / "leave"
        environment = {
            **command.env,
            **{name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ},
        }
        elevated = dataclasses.replace(
            command, argv=sudo.arguments(command.argv, leave=leave, environment=environment)
        )
        try:
            with sudo.leave_to_run(
                leave, cancel=self.cancel, timeout_s=self.settings.convert_timeout_s
            ):
                self._run(elevated)
        except BaseException:
            with contextlib.suppress(CicError):
                sudo.take_over((scratch, target), self.runner)
            raise
        sudo.take_over((scratch, target), self.runner)

    def _run(self, command: Command) -> None:
        try:
            self.runner(command, on_line=self.on_line, cancel=self.cancel)
        except ProcessFailed as error:
            if "no space left" in "\n".join(error.tail).lower():
                raise _no_space(error) from error
            raise ConversionFailed(
                f"The image could not be converted: {error.message}", hint=_hint(error)
            ) from error


def build_command(
    singularity: str,
    source: str,
    made: Path,
    *,
    scratch: Path,
    platform: str,
    settings: BuildSettings,
    time_s: int,
) -> Command:
    """Return `singularity build`, with its temporary files and cache in `scratch`."""
    environment = {
        f"{prefix}_{name}": str(scratch)
        for prefix in ("APPTAINER", "SINGULARITY")
        for name in ("TMPDIR", "CACHEDIR")
    }
    compression: tuple[str, ...] = ()
    if takes_mksquashfs_arguments(singularity):
        compression = ("--mksquashfs-args", mksquashfs_arguments(settings))
    return Command(
        name=f"{Path(singularity).name} build",
        env=environment | {"SOURCE_DATE_EPOCH": str(time_s)},
        cwd=scratch,
        timeout_s=settings.convert_timeout_s,
        argv=(
            singularity,
            "build",
            "--force",
            "--arch",
            platform.split("/")[1],
            *compression,
            str(made),
            source,
        ),
    )


@functools.cache
def takes_mksquashfs_arguments(singularity: str) -> bool:
    """Return whether this Singularity lets us choose the compression.

    SingularityCE before 4 and Apptainer before 1.2 do not.
    """
    help_command = Command(
        name=f"{Path(singularity).name} build", argv=(singularity, "build", "--help"), timeout_s=60
    )
    try:
        return b"--mksquashfs-args" in run(help_command, capture_stdout=True).stdout
    except ProcessFailed:
        return False


def level(settings: BuildSettings) -> int | None:
    """Return the compression level, for compressors that have one."""
    if settings.sif_compressor not in DEFAULT_LEVELS:
        return None
    return settings.sif_compression_level or DEFAULT_LEVELS[settings.sif_compressor]


def mksquashfs_arguments(settings: BuildSettings) -> str:
    """Return the compressor and level of the settings, in mksquashfs's notation."""
    chosen = level(settings)
    return f"-comp {settings.sif_compressor}" + (
        "" if chosen is None else f" -Xcompression-level {chosen}"
    )


def needs_sudo(settings: BuildSettings) -> bool:
    """Return whether `sudo -n` is needed: by `singularity_sudo`, and not as root."""
    return settings.singularity_sudo and os.geteuid() != 0


def _ignore(line: str) -> None:
    pass


def _no_space(error: Exception) -> NoSpace:
    return NoSpace(
        f"The disk is full: the SIF could not be written. {error}",
        hint="Free some room in tmp_folder.",
    )


def _hint(error: ProcessFailed) -> str:
    text = "\n".join(error.tail).lower()
    if "password is required" in text or "no tty present" in text:
        return "singularity_sudo is set: allow this user to run it with sudo without a password, or unset it."
    return ""


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """Yield a private folder, which is removed at the end with what is in it."""
    with tempfile.TemporaryDirectory(
        prefix=".convert-", dir=parent, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
