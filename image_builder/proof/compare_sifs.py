"""Compares two SIFs, object by object and file by file; nothing in them is run or unpacked."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from image_builder.errors import ServiceError, UserError
from image_builder.host.process import Command, started
from image_builder.proof.compare import Difference, FileState, differences, owners_of, report
from image_builder.sif import format

CHUNK_BYTES = 1024**2
MAX_LIST_BYTES = 16 * 1024**2
_LISTS = ("var/lib/dpkg/info/", ".list"), ("", ".dist-info/RECORD")
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hard link",
}


def compare(one: Path, other: Path) -> str:
    """Return in what two SIFs differ, as text; empty if they are equal, bit for bit.

    Raises `UserError` for what is no SIF, `ToolMissing` without sqfs2tar, and `ServiceError`.
    """
    if _sha256(one) == _sha256(other):
        return ""
    parts = _other_parts(one, other)
    first, owners = _files(one)
    second, more = _files(other)
    found: list[Difference] = list(differences(first, second, {**more, **owners}))
    said = report(found, parts)
    return said or "differs: how the files are stored, or times of the SIF itself\n"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _digest(file, path.stat().st_size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _other_parts(one: Path, other: Path) -> list[str]:
    """Return the objects beside the file system that differ, or are in one of both alone."""
    first, second = _objects(one), _objects(other)
    return [
        name or "an object without a name"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def _objects(path: Path) -> dict[str, str]:
    """Return the digests of a SIF's objects but for its file system."""
    digests = {}
    for item in _read(path).descriptors:
        if not item.is_primary_partition:
            with path.open("rb") as file:
                file.seek(item.offset)
                digests[item.name] = _digest(file, item.size_bytes)
    return digests


def _read(path: Path) -> format.Sif:
    try:
        return format.read(path)
    except (format.BadSif, OSError) as error:
        raise UserError(f"{path} is no SIF: {error}.") from None


def _digest(file: IO[bytes], size_bytes: int) -> str:
    digest = hashlib.sha256()
    while size_bytes and (chunk := file.read(min(size_bytes, CHUNK_BYTES))):
        digest.update(chunk)
        size_bytes -= len(chunk)
    return digest.hexdigest()


def _files(path: Path) -> tuple[dict[str, FileState], dict[str, str]]:
    """Return the files of a SIF, and whose they are."""
    partition = _read(path).primary
    states: dict[str, FileState] = {}
    lists: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="cic-compare-") as folder:
        squashfs = Path(folder) / "squashfs"
        with path.open("rb") as source, squashfs.open("wb") as target:
            source.seek(partition.offset)
            left = partition.size_bytes
            while left and (chunk := source.read(min(left, CHUNK_BYTES))):
                target.write(chunk)
                left -= len(chunk)
        command = Command(name="sqfs2tar", argv=("sqfs2tar", "--no-skip", str(squashfs)))
        with started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            try:
                _take(process.stdout, states, lists)
            except tarfile.TarError as error:
                raise ServiceError(f"The files of {path} cannot be read: {error}.") from error
            if process.wait() != 0:
                raise ServiceError(f"sqfs2tar cannot read the file system of {path}.")
    return states, owners_of(lists)


def _take(stream: IO[bytes], states: dict[str, FileState], lists: dict[str, str]) -> None:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name, content = member.name.strip("/"), member.linkname
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None and _is_list(name) and member.size <= MAX_LIST_BYTES:
                text = file.read()
                lists[name] = text.decode("utf-8", "replace")
                content = hashlib.sha256(text).hexdigest()
            elif file is not None:
                content = _digest(file, member.size)
            states[name] = FileState(
                kind=_KINDS.get(member.type, "device"),
                mode=member.mode,
                owner=(member.uid, member.gid),
                time_s=int(member.mtime),
                content=content,
            )


def _is_list(name: str) -> bool:
    return any(name.startswith(begin) and name.endswith(end) for begin, end in _LISTS)
