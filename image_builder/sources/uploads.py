"""Takes a step's folder from a tar archive that a user sends, and keeps it by its git tree.

The archive is a stranger's: its headers are walked before anything is unpacked, and what it holds
passes the checks of a git tree (`trees.check`) before anything is written. Kept folders are named
by their tree, so equal ones are one folder, and the identity is that of the same folder in a
registry.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from image_builder.errors import NotFound
from image_builder.host import files
from image_builder.request.build_request import BuildRequest
from image_builder.sources.git import trees
from image_builder.sources.git.trees import BadTree, Entry, Limits
from image_builder.sources.local_step import local_step
from image_builder.sources.step import DESCRIPTIONS, StepRef
from image_builder.sources.tar_headers import Member, members

HEADERS_BYTES = 4096
"""What headers may take for each file, and the padding behind its content."""
PACK = "pack it with: tar --create --directory FOLDER ."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """Describes a kept folder: its tree, how many files it has, and what they take on the disk."""

    tree: str
    files: int
    size_bytes: int


def keep_upload(stream: IO[bytes], root: Path, limits: Limits) -> Upload:
    """Unpack a tar archive, plain or compressed with gzip, to a folder below `root`.

    Raises `BadTree` for what is no archive, and for content that a step may not have; nothing is
    left behind then. `NoSpace` says that the disk is full.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=root) as plain:
        _inflate(stream, plain, limits.max_bytes + HEADERS_BYTES * limits.max_files)
        found = _below_top(_by_path(members(plain, limits, _counts)))
        entries = [_entry(plain, path, member) for path, member in sorted(found.items())]
        trees.check(entries, limits)
        tree = keep_entries(entries, root, lambda entry: _content(plain, found[entry.path]))
    return Upload(tree=tree, files=len(entries), size_bytes=trees.disk_bytes(entries))


def keep_entries(
    entries: Sequence[Entry], root: Path, read: Callable[[Entry], Iterable[bytes]]
) -> str:
    """Write a checked folder to below `root` unless it is kept already, and return its tree."""
    tree = trees.tree_digest(entries)
    if not (root / tree).is_dir():
        aside = root / f"aside-{uuid.uuid4().hex}"
        trees.write(entries, aside, read)
        _rename(aside, root / tree)
    return tree


def uploaded_step(request: BuildRequest, root: Path, limits: Limits) -> StepRef:
    """Return the step in the folder that a request's `folder` names.

    Raises `NotFound` for a folder that is not kept any more.
    """
    assert request.folder is not None
    missing = NotFound(
        "The folder is not there any more.", field="folder", hint="Send it again, with the request."
    )
    if not (root / request.folder).is_dir():
        raise missing
    step = local_step(
        root / request.folder,
        workflow=request.workflow_name,
        step_id=request.step_name,
        version=request.version,
        limits=limits,
    )
    if step.tree != request.folder:
        raise missing
    return step


def _inflate(stream: IO[bytes], plain: IO[bytes], max_bytes: int) -> None:
    """Copy the archive to a file without its compression, and no more than `max_bytes` of it."""
    is_compressed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    source: IO[bytes] = gzip.GzipFile(fileobj=stream) if is_compressed else stream  # type: ignore[assignment]
    left = max_bytes
    try:
        while chunk := source.read(min(trees.CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                problem = f"takes more than {max_bytes // 1024**2} MiB unpacked"
                raise BadTree("", problem, "keep data out of it")
            plain.write(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BadTree("", "is a damaged gzip file", PACK) from None
    plain.seek(0)


def _by_path(found: Iterable[Member]) -> dict[str, Member]:
    """Return the files and links of an archive by their paths; folders are in those."""
    by_path: dict[str, Member] = {}
    for member in found:
        path = _plain_path(member.path)
        if not path or not _counts(path):
            continue
        trees.check_name(path)
        if member.is_folder:
            continue
        if path in by_path:
            raise BadTree(trees.printable(path), "is there twice", PACK)
        by_path[path] = member
    return by_path


def _counts(path: str) -> bool:
    """Return whether a file is the step's; git's own files are not."""
    return ".git" not in path.split("/")


def _plain_path(path: str) -> str:
    """Return a path without the `./` that tar writes before it; nothing for the folder itself."""
    while path.startswith("./"):
        path = path[2:]
    return "" if path == "." else path.removesuffix("/")


def _below_top(found: dict[str, Member]) -> dict[str, Member]:
    """Return what is in the one folder that an archive has, if the description is in it."""
    tops = {path.partition("/")[0] for path in found}
    if len(tops) != 1 or not any(f"{top}/{name}" in found for top in tops for name in DESCRIPTIONS):
        return found
    return {path.partition("/")[2]: member for path, member in found.items()}


def _entry(plain: IO[bytes], path: str, member: Member) -> Entry:
    if member.target is not None:
        content = os.fsencode(member.target)
        return Entry(
            path=path,
            mode=trees.LINK,
            digest=trees.blob_digest(content),
            size=len(content),
            target=member.target,
        )
    return Entry(
        path=path,
        mode=trees.EXECUTABLE if member.is_executable else trees.FILE,
        digest=trees.file_digest(member.size, _content(plain, member)),
        size=member.size,
    )


def _content(plain: IO[bytes], member: Member) -> Iterator[bytes]:
    plain.seek(member.offset)
    left = member.size
    while left:
        chunk = plain.read(min(left, trees.CHUNK_BYTES))
        left -= len(chunk)
        yield chunk


def _rename(aside: Path, kept: Path) -> None:
    try:
        files.move_into_place(aside, kept)
    except OSError:  # another request was faster: the same files
        shutil.rmtree(aside, ignore_errors=True)
        if not kept.is_dir():
            raise
