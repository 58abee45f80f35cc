"""Looks at the programs and libraries that are in an image, from outside.

The image's author decides what its own `python3` says, so none of its programs runs: the daemon
hands out the files of a container that is never started, and they are read here as bytes, once.
Instructions are read by the base image's `objdump`, in a container that holds nothing but a sample
of the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from image_builder.audit import elf
from image_builder.audit.binaries import SAMPLES_FOLDER, inventory_program
from image_builder.audit.image_facts import Collector, ImageFacts
from image_builder.docker.container import Container, run_container
from image_builder.errors import ErrorCode, LimitReached, ServiceError
from image_builder.host.cancellation import CancelToken
from image_builder.host.files import sha256_of
from image_builder.host.process import ProcessFailed, Runner
from image_builder.host.text_cache import TextCache
from image_builder.sif import docker_export, tar_filter
from image_builder.sif.begun import BegunSif, CopyingWindow
from image_builder.sif.tar_filter import CorruptArchive, Member, UnsupportedArchive, Window

MAX_FILES = 20_000
MAX_SAMPLES = 40
MAX_SAMPLE_BYTES = 64 * 1024**2
MAX_PATH = 1000
TIMEOUT_S = 600.0
LISTING_BYTES = 32 * 1024**2
CHUNK_BYTES = 1024**2
_PLAIN_FILES = b"0\0"


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
    known: TextCache
    """Holds what was printed of the same files."""
    known_for: str
    """Names what reads them: its digest, where it has one."""


@dataclasses.dataclass
class Listing:
    """Holds programs and libraries with their first bytes, and the sample's names."""

    files: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    sampled: dict[str, str] = dataclasses.field(default_factory=dict)
    """Path in the image by name in the sample's folder, which is a digest of that path."""


class Visitor(Protocol):
    """Looks at an image's files while they are read for others; it raises nothing of its own."""

    def see(self, member: Member, window: Window) -> None:
        """Look at the member at the window's position, which stays there."""

    def end(self) -> None:
        """Take note that all files were seen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Holds what `binaries.audit_files` judges, as JSON, and the facts of the image."""

    inventory: str
    facts: ImageFacts


def look(
    image: str,
    trees: Sequence[str],
    platform: str,
    sampling: Sampling,
    cancel: CancelToken,
    visitors: Sequence[Visitor] = (),
    begun: BegunSif | None = None,
) -> Found:
    """Return what is in an image; the inventory is of the files below some folders, the `trees`.

    The files are passed on to a SIF that was begun of them.

    Raises `Unavailable` for a daemon that does not answer, `LimitReached` for an image that takes
    too long to read, `ServiceError` for one that cannot be read, `Cancelled`.
    """
    listing, collector = Listing(), Collector()
    sampling.folder.mkdir()
    try:
        with docker_export.exported_files(image, timeout_s=TIMEOUT_S) as source:
            window = Window(source, None) if begun is None else CopyingWindow(source, begun)
            watching = visitors if begun is None else (*visitors, begun)
            reader = _Reader(window, tuple(f"{tree}/" for tree in trees), listing, sampling.folder)
            reader.read(collector, cancel, watching)
        instructions = _instructions(listing, platform, sampling, cancel)
    except (CorruptArchive, UnsupportedArchive, OSError) as error:
        raise ServiceError(f"The image's files cannot be read: {error}.") from error
    finally:
        shutil.rmtree(sampling.folder, ignore_errors=True)
    inventory = {
        "files": [[path, start.hex()] for path, start in sorted(listing.files)],
        "instructions": instructions,
    }
    return Found(inventory=json.dumps(inventory), facts=collector.facts())


def facts_of_tar(source: int, cancel: CancelToken) -> ImageFacts:
    """Return the facts of the files that a tar holds; `source` is a descriptor.

    Raises as `look` does, and `CorruptArchive` or `UnsupportedArchive`.
    """
    collector = Collector()
    _Reader(Window(source, None), (), Listing(), None).read(collector, cancel)
    return collector.facts()


class _Reader:
    """Reads the archive of an image's files once, for the inventory and for the facts."""

    def __init__(
        self, window: Window, trees: tuple[str, ...], listing: Listing, samples: Path | None
    ) -> None:
        self._window, self._trees = window, trees
        self._listing, self._samples = listing, samples
        self._deadline = time.monotonic() + TIMEOUT_S

    def read(
        self, collector: Collector, cancel: CancelToken, visitors: Sequence[Visitor] = ()
    ) -> None:
        window = self._window
        while (member := tar_filter.next_member(window)) is not None:
            cancel.check()
            if time.monotonic() > self._deadline:
                raise LimitReached(
                    f"The image's files took longer than {TIMEOUT_S:.0f} s to read.",
                    code=ErrorCode.BUILD_TIMEOUT,
                )
            path = "/" + member.name.decode("utf-8", "surrogateescape")[:MAX_PATH]
            collector.note(path)
            for visitor in visitors:
                visitor.see(member, window)
            window.drop(member.extent)
            body = _Body(window, member.body_bytes)
            if member.kind in _PLAIN_FILES and member.body_bytes:
                self._look_at(path, body, collector)
            body.drop()
        window.drain()
        for visitor in visitors:
            visitor.end()

    def _look_at(self, path: str, body: _Body, collector: Collector) -> None:
        is_listed = path.startswith(self._trees) and len(self._listing.files) < MAX_FILES
        if not is_listed and not collector.wants(path):
            return
        chunks = iter(body)
        if is_listed:
            chunks = self._listed(path, body.left, chunks)
        collector.add(path, body.left, chunks)

    def _listed(self, path: str, size_bytes: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks of a file; a program among them is listed, and may be of the sample."""
        first = next(chunks, b"")
        start = first[: elf.HEADER_BYTES]
        header = elf.read_header(start)
        name = None
        if header is not None and header.runs:
            self._listing.files.append((path, start))
            name = self._sample_name(path, size_bytes)
        if name is None or self._samples is None:
            yield first
            yield from chunks
            return
        with (self._samples / name).open("wb") as copy:
            copy.write(first)
            yield first
            for chunk in chunks:
                copy.write(chunk)
                yield chunk

    def _sample_name(self, path: str, size_bytes: int) -> str | None:
        """Return the name of a file in the sample, from which another may be removed, or None.

        Those with the smallest digests stay.
        """
        sampled = self._listing.sampled
        name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()
        if self._samples is None or size_bytes > MAX_SAMPLE_BYTES:
            return None
        if len(sampled) == MAX_SAMPLES:
            last = max(sampled)
            if name > last:
                return None
            (self._samples / last).unlink()
            del sampled[last]
        sampled[name] = path
        return name


class _Body:
    """Yields the bytes of an archive's member, padding included, as far as they are wanted."""

    def __init__(self, window: Window, size_bytes: int) -> None:
        self._window, self.left = window, size_bytes

    def __iter__(self) -> Iterator[bytes]:
        while self.left:
            count = min(self.left, CHUNK_BYTES)
            if not self._window.need(count):
                raise CorruptArchive("the stream ends in the middle of a file")
            chunk = self._window.peek(count)
            self._window.drop(count)
            self.left -= count
            yield chunk

    def drop(self) -> None:
        """Pass over what was not asked for."""
        self._window.drop(self.left)
        self.left = 0


def _instructions(
    listing: Listing, platform: str, sampling: Sampling, cancel: CancelToken
) -> dict[str, Any]:
    """Return the kinds of instructions by path, where the base image has what reads them.

    Most builds change few files, and starting the container takes longer than reading the sample.
    """
    if not listing.sampled:
        return {}
    key = _key(listing, sampling)
    known = sampling.known.get(key)
    try:
        text = known or _printed(platform, sampling, cancel)
        kinds_by_path = json.loads(text)["instructions"]
        kinds = {listing.sampled[Path(path).name]: told for path, told in kinds_by_path.items()}
    except (
        ProcessFailed,
        LimitReached,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        cancel.check()
        return {}
    if known is None:
        with contextlib.suppress(OSError):
            sampling.known.keep(key, text)
    return kinds


def _key(listing: Listing, sampling: Sampling) -> str:
    """Return a digest of the sample's files with their names, and of what reads them."""
    digest = hashlib.sha256(f"{sampling.known_for}\0{sampling.recipe_version}".encode())
    for name in sorted(listing.sampled):
        with (sampling.folder / name).open("rb") as file:
            digest.update(f"\0{name}\0{sha256_of(file)}".encode())
    return digest.hexdigest()


def _printed(platform: str, sampling: Sampling, cancel: CancelToken) -> str:
    """Return what the recipe's program prints of the sample, in a container of the base image."""
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
    printed = run_container(container, runner=sampling.runner, cancel=cancel, capture_stdout=True)
    return printed.decode("utf-8", "replace")
