"""Lists the programs and libraries that are in an image, from outside.

The image's author decides what its own `python3` says, so none of its programs runs: the daemon
hands out the files of a container that is never started, and only their beginnings are read here.
Instructions are read by the base image's `objdump`, in a container that holds nothing but a sample
of the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from image_builder.audit import elf
from image_builder.audit.binaries import SAMPLES_FOLDER, inventory_program
from image_builder.docker import daemon
from image_builder.docker.container import Container, run_container
from image_builder.errors import ErrorCode, LimitReached
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import ProcessFailed, Runner

MAX_FILES = 20_000
MAX_SAMPLES = 40
MAX_SAMPLE_BYTES = 64 * 1024**2
MAX_PATH = 1000
TIMEOUT_S = 600.0
LISTING_BYTES = 32 * 1024**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Says what reads the instructions of the sampled files: an image with Python, with limits."""

    image: str
    recipe_version: str
    folder: Path
    """For the sampled files; it is made, and removed at the end."""
    cpus: float
    cgroup: str | None
    runner: Runner


@dataclasses.dataclass
class Listing:
    """Holds programs and libraries with their first bytes, and the sample's names."""

    files: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    sampled: dict[str, str] = dataclasses.field(default_factory=dict)
    """Path in the image by name in the sample's folder, which is a digest of that path."""


def list_files(
    image: str, trees: Sequence[str], platform: str, sampling: Sampling, cancel: CancelToken
) -> str:
    """Return what `binaries.audit_files` judges, as JSON, of the files below some folders.

    Raises `Unavailable` for a daemon that does not answer, `LimitReached` for an image that takes
    too long to read, `Cancelled`.
    """
    listing, deadline = Listing(), time.monotonic() + TIMEOUT_S
    sampling.folder.mkdir()
    try:
        for tree in trees:
            with daemon.exported_folder(image, tree) as chunks:
                _read(chunks, tree, listing, sampling.folder, deadline, cancel)
        instructions = _instructions(listing, platform, sampling, cancel)
    finally:
        shutil.rmtree(sampling.folder, ignore_errors=True)
    return json.dumps(
        {
            "files": [[path, start.hex()] for path, start in sorted(listing.files)],
            "instructions": instructions,
        }
    )


def _read(
    chunks: Iterator[bytes],
    tree: str,
    listing: Listing,
    folder: Path,
    deadline: float,
    cancel: CancelToken,
) -> None:
    """Add what an archive of a folder holds. Its members begin with the folder's own name."""
    top = tree.rpartition("/")[0]
    with tarfile.open(fileobj=io.BufferedReader(_Stream(chunks)), mode="r|") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would remember every one
            cancel.check()
            if time.monotonic() > deadline:
                raise LimitReached(
                    f"The image's files took longer than {TIMEOUT_S:.0f} s to read.",
                    code=ErrorCode.BUILD_TIMEOUT,
                )
            if member.isreg() and len(listing.files) < MAX_FILES:
                file = archive.extractfile(member)
                if file is not None:
                    _look_at(file, f"{top}/{member.name}"[:MAX_PATH], member.size, listing, folder)


def _look_at(file: IO[bytes], path: str, size_bytes: int, listing: Listing, folder: Path) -> None:
    start = file.read(elf.HEADER_BYTES)
    header = elf.read_header(start)
    if header is None or not header.runs:
        return
    listing.files.append((path, start))
    name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()
    if size_bytes > MAX_SAMPLE_BYTES or (
        len(listing.sampled) == MAX_SAMPLES and name > max(listing.sampled)
    ):
        return
    if len(listing.sampled) == MAX_SAMPLES:  # those with the smallest digests stay
        (folder / max(listing.sampled)).unlink()
        del listing.sampled[max(listing.sampled)]
    listing.sampled[name] = path
    with (folder / name).open("wb") as copy:
        copy.write(start)
        shutil.copyfileobj(file, copy)


def _instructions(
    listing: Listing, platform: str, sampling: Sampling, cancel: CancelToken
) -> dict[str, Any]:
    """Return the kinds of instructions by path, where the base image has what reads them."""
    if not listing.sampled:
        return {}
    container = Container(
        name="the look at instructions",
        image=sampling.image,
        platform=platform,
        program=inventory_program(sampling.recipe_version),
        timeout_s=TIMEOUT_S,
        cpus=sampling.cpus,
        cgroup=sampling.cgroup,
        max_stdout_bytes=LISTING_BYTES,
        files=sampling.folder,
        files_at=SAMPLES_FOLDER,
    )
    try:
        printed = run_container(
            container, runner=sampling.runner, cancel=cancel, capture_stdout=True
        )
        kinds_by_path = json.loads(printed)["instructions"]
        return {listing.sampled[Path(path).name]: kinds for path, kinds in kinds_by_path.items()}
    except (ProcessFailed, LimitReached, ValueError, KeyError, TypeError, AttributeError):
        cancel.check()
        return {}


class _Stream(io.RawIOBase):
    """Lets a consumer read chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
