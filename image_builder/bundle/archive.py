"""Writes a bundle's tar archive, and reads it back without believing any of it.

An archive is determined by its manifest to the last byte: the headers hold nothing else. So a
reader does not parse them, but compares each with what it has to be. Whatever differs is refused:
other names, links, devices, what is missing or added, and an archive that was cut.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from image_builder.bundle.manifest import (
    AGAIN,
    MAX_BYTES,
    BadBundle,
    File,
    Manifest,
    read_manifest,
)
from image_builder.host.cancellation import CancelToken
from image_builder.host.workspace import require_free_space
from image_builder.sources.git.trees import MTIME_S

MANIFEST, SIGNATURE = "manifest.json", "manifest.dsse.json"
BLOCK = 512
CHUNK_BYTES = 1024**2
_END = bytes(2 * BLOCK)
_NO_BUNDLE = "Make one with: cic_builder.py bundle --request FILE --output bundle.tar"
_COPY_AGAIN = "Copy it again, and compare its sha256sum on both sides."


def file_of(path: str, place: Path) -> File:
    """Return the entry of a file of this machine."""
    digest, size = hashlib.sha256(), 0
    with place.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return File(path=path, sha256=digest.hexdigest(), size=size)


def write(
    output: BinaryIO,
    manifest: Manifest,
    places: Mapping[str, Path],
    *,
    signature: bytes | None,
    cancel: CancelToken,
) -> None:
    """Write the archive of a manifest, whose files are in `places` by their paths."""
    _write_bytes(output, MANIFEST, manifest.text())
    if signature is not None:
        _write_bytes(output, SIGNATURE, signature)
    for entry in manifest.files:
        output.write(header(entry.path, entry.size))
        left = entry.size
        with places[entry.path].open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                cancel.check()
                left -= len(chunk)
                output.write(chunk)
        if left:
            raise OSError(f"{places[entry.path]} changed while it was written to the bundle")
        output.write(bytes(_padding(entry.size)))
    output.write(_END)


def _write_bytes(output: BinaryIO, name: str, content: bytes) -> None:
    output.write(header(name, len(content)) + content + bytes(_padding(len(content))))


def header(path: str, size: int) -> bytes:
    """Return the one header that a file of a bundle has."""
    member = tarfile.TarInfo(path)
    member.size, member.mtime, member.mode = size, MTIME_S, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % BLOCK


class Reader:
    """Reads an open bundle from its start to its end, once."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._size = os.fstat(file.fileno()).st_size

    def manifest(self) -> tuple[bytes, bytes | None]:
        """Return the manifest's bytes and its signature, or None where it has none."""
        text = self._first(MANIFEST)
        if text is None:
            raise BadBundle(f"{self._name} is no bundle.", hint=_NO_BUNDLE)
        return text, self._first(SIGNATURE)

    def require_whole(self, manifest: Manifest) -> None:
        """Raise `BadBundle` unless the archive is as long as its manifest says."""
        expected = self._file.tell() + len(_END)
        for file in manifest.files:
            expected += len(header(file.path, file.size)) + file.size + _padding(file.size)
        if self._size < expected:
            raise BadBundle(
                f"The bundle is cut: it has {self._size} bytes of {expected}.", hint=_COPY_AGAIN
            )
        if self._size > expected:
            raise BadBundle("The bundle holds more than its manifest says.", hint=AGAIN)

    def unpack(self, manifest: Manifest, folder: Path, cancel: CancelToken) -> None:
        """Write all files below `folder`, which is empty. They may be used when this has ended."""
        made: set[Path] = set()
        for entry in manifest.files:
            self._expect(header(entry.path, entry.size), entry.path)
            place = folder / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            made.update(place.parents[: entry.path.count("/") + 1])
            digest = hashlib.sha256()
            with place.open("xb") as file:
                for chunk in self._content(entry.size):
                    cancel.check()
                    digest.update(chunk)
                    file.write(chunk)
                os.fchmod(file.fileno(), 0o644)
            if digest.hexdigest() != entry.sha256:
                raise self._edited(entry.path)
            self._expect(bytes(_padding(entry.size)), entry.path)
        self._expect(_END, "its end")
        for place in made:  # apt reads them as a user of its own, whatever our umask is
            place.chmod(0o755)

    def _first(self, name: str) -> bytes | None:
        """Return the content of the file that is next, or None if that has another name."""
        start = self._file.tell()
        block = self._file.read(BLOCK)
        digits = block[124:135]
        size = int(digits, 8) if digits.isdigit() and set(digits) <= set(b"01234567") else -1
        if not 0 <= size <= 2 * MAX_BYTES or block != header(name, size):
            self._file.seek(start)
            return None
        content = self._file.read(size)
        if len(content) < size:
            raise BadBundle("The bundle is cut.", hint=_COPY_AGAIN)
        self._expect(bytes(_padding(size)), name)
        return content

    def _content(self, size: int) -> Iterator[bytes]:
        while size:
            chunk = self._file.read(min(size, CHUNK_BYTES))
            if not chunk:
                raise BadBundle("The bundle is cut.", hint=_COPY_AGAIN)
            size -= len(chunk)
            yield chunk

    def _expect(self, content: bytes, where: str) -> None:
        if self._file.read(len(content)) != content:
            raise self._edited(where)

    @staticmethod
    def _edited(where: str) -> BadBundle:
        return BadBundle(
            f"The bundle was edited or damaged at {where[:200]}: that is not what its manifest says.",
            hint=_COPY_AGAIN,
        )


def _opened(path: Path) -> BinaryIO:
    """Open a plain file; a pipe or device is neither waited for nor read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadBundle(
            f"The bundle {path} cannot be read: {error.strerror}.", hint=_NO_BUNDLE
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadBundle(f"{path} is no file.", hint=_NO_BUNDLE)
    return open(descriptor, "rb")


def read(
    path: Path,
    folder: Path,
    *,
    accept: Callable[[bytes, bytes | None], bool],
    require: Callable[[Manifest], None],
    cancel: CancelToken,
    min_free_bytes: int = 0,
) -> tuple[Manifest, bool]:
    """Check a bundle and unpack it below `folder`; return its manifest, and what `accept` says.

    `accept` says whether somebody vouches for a manifest; it raises for one that is not trusted,
    before anything of it is read, and `require` for a bundle that is not wanted, before anything is
    unpacked. Raises `BadBundle`, and `NoSpace`.
    """
    with _opened(path) as file:
        reader = Reader(file, str(path))
        text, signature = reader.manifest()
        is_vouched_for = accept(text, signature)
        manifest = read_manifest(text)
        require(manifest)
        reader.require_whole(manifest)
        require_free_space(folder, sum(one.size for one in manifest.files) + min_free_bytes)
        reader.unpack(manifest, folder, cancel)
    return manifest, is_vouched_for
