"""Converts an image to a SIF quickly: its files stream into squashfs, and nothing is unpacked.

    docker daemon ──> tar_filter.py ─> tar2sqfs ──> squashfs ─┐
                          │ additions                         ├─> SIF, hashed while it is written
    docker buildx ────────┤ (what the export hides)           │
    singularity build ────┴─ of an image without files ───────┘ (its small objects)

Whatever Singularity puts into an image depends on the image's configuration alone. So it converts
an image with this configuration and no files, and what it put there is merged into the stream.

The result is what `singularity build` makes, but for three things that Docker's export does not
show: the root folder is root's with mode 755, as it is in every container of Docker; of the
extended attributes, only file capabilities are there; and hard links to symbolic links are still
links, where `build` makes copies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, LineSink, ProcessFailed, Runner, run
from image_builder.settings import BuildSettings
from image_builder.sif import docker_export, format, tar_filter
from image_builder.sif.begun import BegunSif
from image_builder.sif.docker_export import ExportedImage, NotStreamable
from image_builder.sif.flow import ADDITIONS, Flow, StreamFailed, squashfs_command

PROGRAMS = ("docker", "tar2sqfs", "sqfs2tar", "unsquashfs")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingularityMetadata:
    """Holds what Singularity makes of an image's configuration.

    These are files for the image's root, and small objects for the SIF.
    """

    files: tuple[tuple[tarfile.TarInfo, bytes], ...]
    objects: tuple[format.Object, ...]
    group: int


def stream(
    image: str,
    made: Path,
    *,
    source: str,
    build_empty: Callable[[Path, Path], None],
    scratch: Path,
    platform: str,
    level: int | None,
    settings: BuildSettings,
    on_line: LineSink,
    time_s: int,
    newest_s: int | None = None,
    evidence: format.Evidence | None = None,
    begun: BegunSif | None = None,
    runner: Runner = run,
    cancel: CancelToken | None = None,
) -> str:
    """Make a SIF of an image in the daemon at `made`, and return its sha256.

    What was `begun` of the same files is completed.

    `source` is what the SIF names as its origin. `build_empty(archive, sif)` lets Singularity
    convert an archive. `time_s` is the time in the SIF and `newest_s` the latest that its files may
    have, in seconds since 1970; `evidence` is put into it, too. Raises `NotStreamable` when this
    machine needs another way of conversion, else as `convert.convert` does.
    """
    require_programs()
    architecture = platform.split("/")[1]
    with contextlib.ExitStack() as stack:
        exported = stack.enter_context(docker_export.exported(image))
        if exported.architecture != architecture:
            raise StreamFailed(
                f"The image is for {exported.architecture}, and a SIF for {platform} was asked for."
            )
        if begun is not None and begun.is_usable:
            running = begun.running
        else:
            new = flow_of(
                made.with_suffix(".squashfs"),
                scratch,
                level=level,
                settings=settings,
                time_s=time_s,
                newest_s=newest_s,
                cancel=cancel,
            )
            running = stack.enter_context(new.of_image(exported))
        prepare = _Preparation(
            exported,
            source,
            build_empty,
            scratch,
            running.flow.folder / ADDITIONS,
            platform,
            time_s,
            settings,
            runner,
            cancel,
        )
        with ThreadPoolExecutor(1, thread_name_prefix="convert") as executor:
            stencil = executor.submit(prepare)
            report = running.wait(stencil)
    squashfs = running.flow.target
    warn_of_set_aside(report, on_line)
    _check_counts(squashfs, report, settings, runner, cancel)
    made_of = stencil.result()
    for path in scratch.iterdir():  # from here on, the squashfs and the SIF need the room
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    sha256 = format.write(
        made,
        architecture=architecture,
        small=made_of.objects,
        squashfs=squashfs,
        group=made_of.group,
        time_s=time_s,
        evidence=evidence,
    )
    squashfs.unlink()
    return sha256


def flow_of(
    squashfs: Path,
    folder: Path,
    *,
    level: int | None,
    settings: BuildSettings,
    time_s: int,
    cancel: CancelToken | None,
    newest_s: int | None = None,
) -> Flow:
    """Return what makes the squashfs of a SIF; `folder` is for what is written on the way."""
    return Flow(
        target=squashfs,
        sink=squashfs_command(squashfs, level, settings, time_s=time_s),
        folder=folder,
        has_additions=True,
        time_s=time_s,
        newest_s=newest_s,
        settings=settings,
        cancel=cancel,
    )


def write_layer(
    image: ExportedImage,
    layer: Path,
    *,
    scratch: Path,
    settings: BuildSettings,
    on_line: LineSink,
    time_s: int,
    cancel: CancelToken | None = None,
) -> None:
    """Write the image's files to `layer`, as a tar that Singularity can unpack and write into.

    Raises `UnsuitableImage` for an image that would lead it to files outside.
    """
    flow = Flow(
        target=layer,
        sink=None,
        folder=scratch,
        has_additions=False,
        time_s=time_s,
        newest_s=None,
        settings=settings,
        cancel=cancel,
    )
    with flow.of_image(image) as running:
        report = running.wait(None)
    warn_of_set_aside(report, on_line)


def warn_of_set_aside(report: tar_filter.Report, on_line: LineSink) -> None:
    """Warn of the image's own entries that Singularity's replace."""
    if report.set_aside:
        more = report.set_aside - len(report.set_aside_first)
        on_line(
            f"Warning: {', '.join(report.set_aside_first)}{f' and {more} more' if more else ''} "
            "of the image is left out: Singularity has its own there."
        )


def require_programs() -> None:
    """Raise `NotStreamable` when a program is missing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise NotStreamable(
            f"{', '.join(missing)} is not installed (squashfs-tools-ng, squashfs-tools)"
        )


@dataclasses.dataclass(frozen=True)
class _Preparation:
    """Prepares additions and the SIF's small objects while the image already streams."""

    image: ExportedImage
    source: str
    build_empty: Callable[[Path, Path], None]
    scratch: Path
    additions: Path
    platform: str
    time_s: int
    settings: BuildSettings
    runner: Runner
    cancel: CancelToken | None

    def __call__(self) -> SingularityMetadata:
        with ThreadPoolExecutor(1, thread_name_prefix="originals") as executor:
            hidden = executor.submit(
                docker_export.originals,
                self.image,
                platform=self.platform,
                timeout_s=self.settings.convert_timeout_s,
                log=self.scratch / "buildx.log",
                cancel=self.cancel,
            )
            stencil = self._stencil()
            originals = hidden.result()
        fresh = self.additions.with_suffix(".new")
        with tarfile.open(fresh, "w", format=tarfile.PAX_FORMAT) as archive:
            for member, content in (*originals, *stencil.files):
                archive.addfile(member, io.BytesIO(content))
        fresh.rename(self.additions)
        return stencil

    def _stencil(self) -> SingularityMetadata:
        archive, sif = self.scratch / "empty.tar", self.scratch / "empty.sif"
        archive.write_bytes(
            docker_export.empty_archive(self.image, architecture=self.platform.split("/")[1])
        )
        self.build_empty(archive, sif)
        primary = format.read(sif).primary
        squashfs = self.scratch / "empty.squashfs"
        with sif.open("rb") as file:
            file.seek(primary.offset)
            squashfs.write_bytes(file.read(primary.size_bytes))
        listed = self.runner(
            Command(name="sqfs2tar", argv=("sqfs2tar", str(squashfs)), timeout_s=60),
            cancel=self.cancel,
            capture_stdout=True,
        )
        rename = OriginRewriter(archive.name, self.source, self.time_s)
        return SingularityMetadata(
            files=tuple(_stencil_files(listed.stdout, rename)),
            group=primary.group,
            objects=tuple(rename.in_object(item) for item in format.objects(sif)),
        )


def _stencil_files(
    archive: bytes, rename: OriginRewriter
) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield Singularity's files, owned by root, and Docker's usual root folder."""
    root = tarfile.TarInfo("./")
    root.type, root.mode, root.mtime = tarfile.DIRTYPE, 0o755, rename.time_s
    yield root, b""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            member.uid = member.gid = 0
            member.mtime = rename.time_s
            member.uname = member.gname = ""
            file = members.extractfile(member) if member.isreg() else None
            content = rename.in_file(member.name, file.read() if file is not None else b"")
            member.size = len(content)
            yield member, content


@dataclasses.dataclass(frozen=True)
class OriginRewriter:
    """Puts the image's true origin and time where Singularity wrote those of the archive."""

    archive: str
    source: str
    time_s: int

    def in_file(self, name: str, content: bytes) -> bytes:
        if name == ".singularity.d/labels.json":
            return json.dumps(
                self._labels(json.loads(content)), indent="\t", ensure_ascii=False
            ).encode()
        return (
            self._definition(content.decode()).encode()
            if name == ".singularity.d/Singularity"
            else content
        )

    def in_object(self, item: format.Object) -> format.Object:
        if item.data_type == format.DataType.DEFINITION:
            return dataclasses.replace(
                item, content=self._definition(item.content.decode()).encode()
            )
        if item.name == "inspect-metadata.json":
            metadata = json.loads(item.content)
            attributes = metadata["data"]["attributes"]
            attributes["labels"] = self._labels(attributes.get("labels") or {})
            attributes["deffile"] = self._definition(attributes.get("deffile") or "")
            return dataclasses.replace(item, content=_json_as_go_writes_it(metadata))
        return item

    def _definition(self, text: str) -> str:
        return text.replace("docker-archive", "docker-daemon", 1).replace(
            self.archive, self.source, 1
        )

    def _labels(self, labels: Mapping[str, Any]) -> dict[str, Any]:
        prefix = "org.label-schema.usage.singularity.deffile"
        return {
            **labels,
            f"{prefix}.bootstrap": "docker-daemon",
            f"{prefix}.from": self.source,
            "org.label-schema.build-date": build_date(self.time_s),
        }


def build_date(time_s: int) -> str:
    """Return a time as Singularity writes it into the labels of a SIF, in English."""
    at = datetime.datetime.fromtimestamp(time_s, datetime.timezone.utc)
    day, month = DAYS[at.weekday()], MONTHS[at.month - 1]
    return f"{day}_{at.day}_{month}_{at.year}_{at.hour}:{at.minute}:{at.second}_UTC"


def _json_as_go_writes_it(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


def _check_counts(
    squashfs: Path,
    report: tar_filter.Report,
    settings: BuildSettings,
    runner: Runner,
    cancel: CancelToken | None,
) -> None:
    """Check that everything that went in is there: as many inodes, and as many paths."""
    try:
        inodes = format.squashfs_inodes(squashfs)
    except (format.BadSif, FileNotFoundError) as error:
        raise StreamFailed(f"What tar2sqfs made is not usable: {error}.") from error
    lines = _Counter()
    try:
        runner(
            Command(
                name="unsquashfs",
                argv=("unsquashfs", "-no-progress", "-ls", "-dest", "/", str(squashfs)),
                timeout_s=settings.convert_timeout_s,
            ),
            on_line=lines,
            cancel=cancel,
        )
    except ProcessFailed as error:
        raise StreamFailed(f"What tar2sqfs made cannot be read back: {error.message}") from error
    if inodes != report.inodes + 1 or lines.count != report.listed_lines + 1:
        raise StreamFailed(
            f"Of {report.inodes + 1} files and {report.listed_lines + 1} paths, the squashfs has "
            f"{inodes} and {lines.count}."
        )


class _Counter:
    """Counts lines."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, line: str) -> None:
        self.count += 1
