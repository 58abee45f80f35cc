"""Where finished images lie: SIFs by their sha256, and names that point at them.

    <root>/                     private: nobody else may enter
      sif/<sha256>.sif          a whole, checked SIF; never changed after it got this name
      sif/<sha256>.json         the record it was stored with
      records/<identity>.json   the newest image of an identity
      names/<filename>          what a name means at present
      documents/<identity>/     spack.lock and the like: what an image was made from, to be read without opening it
      pins/<sha256>             clean-up leaves this SIF alone
      incoming/<token>/         one SIF being written; swept when its writer is gone

Every small file is a whole record, replaced by a rename, so a reader needs no lock and never meets half of one. The
SIF is in place before anything points at it, and whatever points at it is gone before it goes. Writers of several
processes take turns through a lock on the root. A reader of a SIF holds a shared lock on it, which keeps it.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_FILENAME = 255

_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.sif")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IDENTITY = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_CHUNK_BYTES = 1024**2


class ImageRecord(BaseModel):
    """What is known of a finished image. Images for the docker engine have no `sha256`, `size_bytes` and `filename`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str = Field(pattern=r"^(sha256:)?[0-9a-f]{64}$")
    image_id: str
    platform: str
    filename: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    created: datetime.datetime = Field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc))
    details: dict[str, Any] = Field(default_factory=dict)
    """Free for the audit's verdict, the request, the recipe, how it was converted, …"""


class ImageStore:
    """The finished images below one folder. Safe among threads and processes; raises `OSError` when the disk fails.

    It does not decide what to keep: clean-up does, through `images` and `remove`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sifs, self._records, self._names = root / "sif", root / "records", root / "names"
        self._pins, self._incoming, self._documents = root / "pins", root / "incoming", root / "documents"
        for folder in (root, self._sifs, self._records, self._names, self._pins, self._incoming, self._documents):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def temporary_path(self) -> Iterator[Path]:
        """A path for a SIF to be written, in a folder of its own on the store's file system.

        What is still in that folder at the end, and was not published, is removed.
        """
        folder = self._incoming / secrets.token_hex(8)
        with self._locked():  # a sweep must not see the folder before its lock is held
            folder.mkdir(mode=0o700)
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_SH)
        try:
            yield folder / "image.sif"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)

    def publish(self, temporary: Path, record: ImageRecord, *, sha256: str | None = None) -> ImageRecord:
        """Put a whole SIF in place and let the record's name and identity point at it; returns the full record.

        `temporary` comes from `temporary_path` and is gone afterwards. `sha256` is what its writer computed while
        writing; without it the file is read once more.
        """
        filename = checked_filename(record.filename)
        temporary.chmod(0o640)
        with open(temporary, "rb") as file:
            digest = _checked_sha256(sha256) if sha256 else sha256_of(file)
            os.fsync(file.fileno())
            size_bytes = os.fstat(file.fileno()).st_size
        full = record.model_copy(update={"sha256": digest, "size_bytes": size_bytes})
        with self._locked():
            os.replace(temporary, self._sif(digest))
            _sync_folder(self._sifs)
            self._point(full, filename)
        return full

    def point(self, record: ImageRecord) -> ImageRecord:
        """Let the record's name and identity point at a SIF that is stored already. `LookupError` if it is not."""
        filename = checked_filename(record.filename)
        with self._locked():
            if not self._whole(record):
                raise LookupError(f"no SIF {record.sha256} is stored")
            self._point(record, filename)
        return record

    def record(self, record: ImageRecord) -> ImageRecord:
        """Keep the record of an image without a SIF. A SIF that the identity has already stays known."""
        with self._locked():
            earlier = self.by_identity(record.identity)
            if earlier is not None and earlier.sha256 is not None:
                kept = {"sha256": earlier.sha256, "size_bytes": earlier.size_bytes, "filename": earlier.filename}
                record = record.model_copy(update=kept)
            _write(self._records / f"{_identity_digest(record.identity)}.json", record)
        return record

    def keep_documents(self, identity: str, documents: Mapping[str, str]) -> None:
        """Keep texts about an identity's image; those of an earlier image of it are replaced."""
        folder = self._documents / _identity_digest(identity)
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, text in documents.items():
            fresh = folder / f".{secrets.token_hex(8)}.new"
            fresh.write_text(text, "utf-8")
            fresh.replace(folder / name)

    def documents(self, identity: str) -> tuple[str, ...]:
        """The names of the texts that are kept about an identity's image."""
        match = _IDENTITY.fullmatch(identity)
        folder = self._documents / match[1] if match else None
        return tuple(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
                     ) if folder is not None and folder.is_dir() else ()

    def document(self, identity: str, name: str) -> str | None:
        """One of those texts."""
        if name not in self.documents(identity):
            return None
        return (self._documents / _identity_digest(identity) / name).read_text("utf-8")

    def by_name(self, filename: str) -> ImageRecord | None:
        """What a name means at present. None for an unknown name, and for one that cannot be a name."""
        return self._read_whole(self._names / filename) if is_filename(filename) else None

    def by_sha256(self, sha256: str) -> ImageRecord | None:
        """The record that a stored SIF came with."""
        return self._read_whole(self._sifs / f"{sha256}.json") if _SHA256.fullmatch(sha256) else None

    def by_identity(self, identity: str) -> ImageRecord | None:
        """The newest image of an identity. None too when its SIF is gone or does not have its size any more."""
        match = _IDENTITY.fullmatch(identity)
        return self._read_whole(self._records / f"{match[1]}.json") if match else None

    def images(self) -> list[ImageRecord]:
        """The record of every stored SIF, newest first."""
        found = (self._read_whole(path) for path in self._sifs.glob("*.json"))
        return sorted(filter(None, found), key=lambda record: record.created, reverse=True)

    def names(self) -> dict[str, ImageRecord]:
        """Every name that is served, with what it means at present."""
        found = {path.name: self._read_whole(path) for path in self._names.iterdir() if is_filename(path.name)}
        return {name: record for name, record in sorted(found.items()) if record is not None}

    def path_of(self, sha256: str) -> Path:
        """Where the SIF with this digest lies, stored or not."""
        return self._sif(_checked_sha256(sha256))

    @contextlib.contextmanager
    def opened(self, sha256: str) -> Iterator[BinaryIO]:
        """A stored SIF, open for reading; `remove` leaves it alone meanwhile. Raises `FileNotFoundError`."""
        with open(self.path_of(sha256), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield file

    def pin(self, sha256: str) -> None:
        """Keep a SIF until it is unpinned."""
        (self._pins / _checked_sha256(sha256)).touch(mode=0o600)

    def unpin(self, sha256: str) -> None:
        (self._pins / _checked_sha256(sha256)).unlink(missing_ok=True)

    def is_pinned(self, sha256: str) -> bool:
        return (self._pins / _checked_sha256(sha256)).exists()

    def remove(self, sha256: str) -> bool:
        """Remove a SIF and whatever points at it. False, and nothing is done, while it is pinned or being read."""
        path = self.path_of(sha256)
        with self._locked():
            if self.is_pinned(sha256) or _is_held(path):
                return False
            for pointer in (*self._names.iterdir(), *self._records.iterdir()):
                record = _read(pointer)
                if record is not None and record.sha256 == sha256:
                    pointer.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        return True

    def sweep(self) -> int:
        """Remove what writers left that ended without a word: half-written SIFs, and SIFs without a record.

        Returns how many bytes that were.
        """
        with self._locked():
            dead = [folder for folder in self._incoming.iterdir() if not _is_held(folder)]
            dead += [sif for sif in self._sifs.glob("*.sif") if not sif.with_suffix(".json").exists()]
            dead += [path for folder in (self._sifs, self._records, self._names) for path in folder.glob(".*.new")]
            freed_bytes = sum(map(_size_bytes, dead))
            for path in dead:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return freed_bytes

    def _point(self, record: ImageRecord, filename: str) -> None:
        """The pointers, the name last: a name that is served has its record."""
        assert record.sha256 is not None
        _write(self._sif(record.sha256).with_suffix(".json"), record)
        _write(self._records / f"{_identity_digest(record.identity)}.json", record)
        _write(self._names / filename, record)

    def _read_whole(self, path: Path) -> ImageRecord | None:
        record = _read(path)
        return record if record is not None and (record.sha256 is None or self._whole(record)) else None

    def _whole(self, record: ImageRecord) -> bool:
        """Whether the record's SIF is there with the size that it was stored with."""
        try:
            return record.sha256 is not None and self._sif(record.sha256).stat().st_size == record.size_bytes
        except FileNotFoundError:
            return False

    def _sif(self, sha256: str) -> Path:
        return self._sifs / f"{sha256}.sif"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, of whatever process; a writer that dies gives its turn back."""
        with open(self.root / "lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def is_filename(name: str) -> bool:
    """Whether this may be the name of a SIF: one path component without any trick."""
    return len(name) <= MAX_FILENAME and _FILENAME.fullmatch(name) is not None


def checked_filename(name: str | None) -> str:
    """The name, if it may be one of a SIF; else `ValueError`."""
    if name is None or not is_filename(name):
        raise ValueError(f"{str(name)[:300]!r} cannot be the name of a SIF")
    return name


def sha256_of(file: BinaryIO) -> str:
    """The sha256 of a file from where it is open."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _checked_sha256(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256[:100]!r} is not a sha256")
    return sha256


def _identity_digest(identity: str) -> str:
    return identity.removeprefix("sha256:")


def _read(path: Path) -> ImageRecord | None:
    """A record, or None where there is none; a file that is no record (a disk that failed) counts as none."""
    try:
        return ImageRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(path: Path, record: ImageRecord) -> None:
    """Replace a record in one step."""
    fresh = path.with_name(f".{secrets.token_hex(8)}.new")
    try:
        with open(fresh, "x", encoding="utf-8", opener=_private) as file:
            json.dump(record.model_dump(mode="json"), file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        _sync_folder(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_held(path: Path) -> bool:
    """Whether somebody holds a lock on a file or folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _size_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
