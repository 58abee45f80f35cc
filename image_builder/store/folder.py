"""Stores finished images in a folder: SIFs by their sha256, and names that point at them.

    <root>/                     private: no other user may enter
      sif/<sha256>.sif          a whole, checked SIF; never changed after it got this name
      sif/<sha256>.json         the record it was stored with
      records/<identity>.json   the newest image of an identity
      names/<filename>          what a name means at present
  image-names/<sha256>      which identity owns a name among Docker images, and since which request
      documents/<identity>/     spack.lock and the like: what an image was made from, to be read without opening it
      pins/<digest>             clean-up leaves this SIF, or the images of this identity, alone
      leases/<identity>         the file lease of processes that make or hand out an image of this identity; its time is
                                the last use
  leases/naming-<sha256>    the lock of whoever gives a name to a Docker image
      incoming/<token>/         one SIF being written; swept when its writer has ended

Every small file is a whole record, replaced by a rename, so a reader needs no lock and never meets half of one. The
SIF is in place before anything points at it, and all pointers are removed before the SIF is. Writers of several
processes take turns through a lock on the root. A reader of a SIF shares a lease on it, and work on an identity shares
a lease on that: neither is removed meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from image_builder.host import file_leases, files
from image_builder.host.files import bytes_of, sha256_of
from image_builder.store import spellings
from image_builder.store.record import (
    ImageRecord,
    checked_filename,
    identity_digest,
    is_filename,
    is_sha256,
    may_take_name,
    name_digest,
    shortened,
    was_asked_later,
    with_sif_of,
)

_IDENTITY = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class ImageStore:
    """Stores the finished images of one folder, safely among threads and processes.

    Raises `OSError` when the disk fails. It does not decide what to keep: clean-up does, through
    `images`, `remove` and `forget`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sifs, self._records, self._names = root / "sif", root / "records", root / "names"
        self._pins, self._incoming, self._documents = (
            root / "pins",
            root / "incoming",
            root / "documents",
        )
        self._leases, self._image_names = root / "leases", root / "image-names"
        for folder in (
            root,
            self._sifs,
            self._records,
            self._names,
            self._pins,
            self._incoming,
            self._documents,
            self._leases,
            self._image_names,
        ):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known = {folder: _KnownRecords(folder) for folder in (self._sifs, self._names)}

    @contextlib.contextmanager
    def using(self, identity: str) -> Iterator[None]:
        """Keep every image of an identity from removal until the block ends."""
        lease = self._lease(identity)
        with file_leases.held(lease):
            os.utime(lease)
            yield

    @contextlib.contextmanager
    def temporary_path(self) -> Iterator[Path]:
        """Yield a path for a SIF to be written, in its own folder on the store's file system.

        The folder is removed at the end, with everything that was not published.
        """
        folder = self._incoming / secrets.token_hex(8)
        with contextlib.ExitStack() as stack:
            with self._locked():  # a sweep must not see the folder before it has a lease
                stack.enter_context(file_leases.held_folder(folder))
            try:
                yield folder / "image.sif"
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self, temporary: Path, record: ImageRecord, *, sha256: str | None = None
    ) -> ImageRecord:
        """Store a whole SIF under the record's name and identity; return the full record.

        `temporary` comes from `temporary_path` and is gone afterwards. `sha256` is what its writer
        computed while writing; without it the file is read once more.
        """
        filename = checked_filename(record.filename)
        temporary.chmod(0o640)
        with open(temporary, "rb") as file:
            digest = _checked_sha256(sha256) if sha256 else sha256_of(file)
        files.sync(temporary)  # before the lock: it may take a while
        size_bytes = temporary.stat().st_size
        full = record.model_copy(update={"sha256": digest, "size_bytes": size_bytes})
        with self._locked():
            files.move_synced(temporary, self._sif(digest))
            self._point(full, filename)
        return full

    def point(self, record: ImageRecord) -> ImageRecord:
        """Let the record's name and identity point at a SIF that is stored already.

        Raises `LookupError` if it is not.
        """
        filename = checked_filename(record.filename)
        with self._locked():
            if not self._whole(record):
                raise LookupError(f"no SIF {record.sha256} is stored")
            self._point(record, filename)
        return record

    @contextlib.contextmanager
    def naming(self, image_id: str) -> Iterator[bool]:
        """Yield whether the block alone, on this machine, gives this name to Docker images."""
        lease = self._leases / f"naming-{name_digest(image_id)}"
        lease.touch(mode=0o600)
        with file_leases.alone(lease) as free:
            yield free

    def take_name(self, record: ImageRecord) -> bool:
        """Let the record's identity own its `image_id` among Docker images.

        Returns False, and changes nothing, if the name was requested later for another identity.
        """
        with self._locked():
            owner = self._owner(record.image_id)
            if not may_take_name(_read(owner), record):
                return False
            if not was_asked_later(_read(owner), record):
                _write(owner, record)
        return True

    def record(self, record: ImageRecord) -> ImageRecord:
        """Store the record of an image without a SIF; the identity keeps a SIF that it has."""
        with self._locked():
            record = with_sif_of(self.by_identity(record.identity), record)
            _write(self._records / f"{identity_digest(record.identity)}.json", record)
        return record

    def keep_documents(self, identity: str, documents: Mapping[str, str | None]) -> None:
        """Store texts about an identity's image, in place of those of an earlier image of it."""
        folder = self._documents / identity_digest(identity)
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, text in documents.items():
            if text is None:
                (folder / name).unlink(missing_ok=True)
            else:
                files.write_whole(folder / name, text)

    def documents(self, identity: str) -> tuple[str, ...]:
        """Return the names of the texts that are stored about an identity's image."""
        match = _IDENTITY.fullmatch(identity)
        folder = self._documents / match[1] if match else None
        return (
            tuple(sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")))
            if folder is not None and folder.is_dir()
            else ()
        )

    def document(self, identity: str, name: str) -> str | None:
        """Return one of the texts about an identity's image, or None if it has no such text."""
        if name not in self.documents(identity):
            return None
        return (self._documents / identity_digest(identity) / name).read_text("utf-8")

    def by_name(self, filename: str) -> ImageRecord | None:
        """Return what a name means at present, in either spelling.

        Returns None for an unknown name, and for one that cannot be a name.
        """
        if not is_filename(filename):
            return None
        records = map(self._read_whole, self._spelled(filename))
        return next((record for record in records if record is not None), None)

    def by_sha256(self, sha256: str) -> ImageRecord | None:
        """Return the record that a stored SIF was stored with, or None."""
        return self._read_whole(self._sifs / f"{sha256}.json") if is_sha256(sha256) else None

    def by_identity(self, identity: str) -> ImageRecord | None:
        """Return the newest image of an identity, or None.

        Returns None, too, if its SIF is missing or no longer has the size that it was stored with.
        """
        match = _IDENTITY.fullmatch(identity)
        return self._read_whole(self._records / f"{match[1]}.json") if match else None

    def images(self) -> list[ImageRecord]:
        """Return the record of every stored SIF, newest first.

        Of the details, a list has the labels alone.
        """
        sizes = self._sizes()
        records = (
            record
            for record in self._known[self._sifs].read(".json").values()
            if record.sha256 is not None and sizes.get(record.sha256) == record.size_bytes
        )
        return sorted(records, key=lambda record: record.created, reverse=True)

    def names(self) -> dict[str, ImageRecord]:
        """Return every name that is served, with what it means at present.

        Of the details, a list has the labels alone.
        """
        sizes = self._sizes()
        return {
            name: record
            for name, record in sorted(self._known[self._names].read(".sif").items())
            if record.sha256 is not None
            and sizes.get(record.sha256) == record.size_bytes
            and is_filename(name)
        }

    def identities(self) -> dict[str, float]:
        """Return every identity that was used here and not forgotten, with its last use.

        Times are in seconds since 1970.
        """
        digests = {path.stem for path in self._records.glob("*.json")}
        digests |= {
            path.name
            for folder in (self._documents, self._leases)
            for path in folder.iterdir()
            if is_sha256(path.name)
        }
        return {identity: self._last_use(identity) for identity in digests}

    def is_known(self, identity: str) -> bool:
        """Return whether the store has a record, texts or a lease of an identity."""
        match = _IDENTITY.fullmatch(identity)
        return match is not None and any(
            (folder / name).exists()
            for folder, name in (
                (self._records, f"{match[1]}.json"),
                (self._documents, match[1]),
                (self._leases, match[1]),
            )
        )

    def last_use(self, record: ImageRecord) -> float:
        """Return when a stored SIF was last made, named, handed out or opened.

        Times are in seconds since 1970.
        """
        return max(
            _mtime(self._sif(record.sha256 or "").with_suffix(".json")),
            self._last_use(record.identity),
        )

    def path_of(self, sha256: str) -> Path:
        """Return the path of the SIF with this digest, stored or not."""
        return self._sif(_checked_sha256(sha256))

    def address_of(self, filename: str) -> str | None:
        """Return None: `singularity pull` does not read folders."""
        return None

    @contextlib.contextmanager
    def opened(self, sha256: str) -> Iterator[BinaryIO]:
        """Yield a stored SIF, open for reading; `remove` leaves it alone meanwhile.

        Raises `FileNotFoundError`.
        """
        path = self.path_of(sha256)
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                os.utime(path.with_suffix(".json"))
            yield file

    def pin(self, digest: str) -> None:
        """Keep a SIF, or the images of an identity, from removal until it is unpinned."""
        (self._pins / _pinnable(digest)).touch(mode=0o600)

    def unpin(self, digest: str) -> None:
        (self._pins / _pinnable(digest)).unlink(missing_ok=True)

    def is_pinned(self, digest: str) -> bool:
        return (self._pins / _pinnable(digest)).exists()

    def is_kept(self, record: ImageRecord) -> bool:
        """Return whether a SIF or its identity is pinned, or in use at this moment."""
        assert record.sha256 is not None
        return (
            self.is_pinned(record.sha256)
            or self.is_pinned(record.identity)
            or file_leases.is_held(self._sif(record.sha256))
            or self.is_leased(record.identity)
        )

    def remove(self, sha256: str, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Remove a SIF with all its pointers, and return whether it did.

        It stays while it or its identity is pinned or in use, or if `unless` returns True. `unless`
        is called when no further use of the SIF can begin.
        """
        path = self.path_of(sha256)
        with self._locked(), contextlib.ExitStack() as stack:
            pointers = [
                pointer
                for pointer in (*self._names.iterdir(), *self._records.iterdir())
                if (record := _read(pointer)) is not None and record.sha256 == sha256
            ]
            identities = {
                record.identity
                for pointer in (*pointers, path.with_suffix(".json"))
                if (record := _read(pointer)) is not None
            }
            free = [
                stack.enter_context(file_leases.alone(lock))
                for lock in (path, *map(self._lease, identities))
            ]
            if not all(free) or any(map(self.is_pinned, {sha256, *identities})) or unless():
                return False
            for pointer in (*pointers, path.with_suffix(".json"), path):
                pointer.unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def unused(self, identity: str, *, is_pinned: bool = False) -> Iterator[bool]:
        """Yield whether an identity is free (not in use, not pinned); no use begins meanwhile."""
        with file_leases.alone(self._lease(identity)) as free:
            yield free and not is_pinned and not self.is_pinned(identity)

    def is_leased(self, identity: str) -> bool:
        """Return whether an identity is in use at this moment."""
        return file_leases.is_held(self._lease(identity))

    def lease_used_at(self, identity: str) -> float:
        """Return when the last use of an identity began, in seconds since 1970."""
        return _mtime(self._lease(identity))

    def forget(self, identity: str) -> bool:
        """Remove record and texts of an identity without a SIF; return whether it did.

        They stay while the identity is in use.
        """
        digest = identity_digest(identity)
        with self._locked(), self.unused(identity) as free:
            record = self.by_identity(identity)
            if not free or (record is not None and record.sha256 is not None):
                return False
            if record is not None:
                self._give_up_name(record)
            (self._records / f"{digest}.json").unlink(missing_ok=True)
            shutil.rmtree(self._documents / digest, ignore_errors=True)
            self._lease(identity).unlink(missing_ok=True)
        return True

    def texts_bytes(self, identity: str) -> int:
        """Return how many bytes `forget` would free."""
        digest = identity_digest(identity)
        return sum(map(bytes_of, (self._records / f"{digest}.json", self._documents / digest)))

    def leftovers(self) -> dict[Path, int]:
        """Return what killed writers left behind, with its size.

        These are half-written SIFs, and SIFs without a record. Only under the root's lock is it
        certain that they are still unused.
        """
        dead = [folder for folder in self._incoming.iterdir() if not file_leases.is_held(folder)]
        dead += [sif for sif in self._sifs.glob("*.sif") if not sif.with_suffix(".json").exists()]
        dead += [
            path
            for folder in (self._sifs, self._records, self._names)
            for path in folder.glob(".*.new")
        ]
        return {path: bytes_of(path) for path in dead}

    def sweep(self) -> int:
        """Remove what killed writers left behind, and return how many bytes that were."""
        with self._locked():
            dead = self.leftovers()
            for path in dead:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return sum(dead.values())

    def _point(self, record: ImageRecord, filename: str) -> None:
        """Write the pointers, the name last, so that a name that is served has its record.

        An earlier spelling of the name follows if it exists.
        """
        assert record.sha256 is not None
        _write(self._sif(record.sha256).with_suffix(".json"), record)
        _write(self._records / f"{identity_digest(record.identity)}.json", record)
        for name in self._spelled(filename):
            if was_asked_later(_read(name), record):
                continue
            if name.name == filename or name.exists():
                _write(name, record.model_copy(update={"filename": name.name}))

    def _owner(self, image_id: str) -> Path:
        return self._image_names / name_digest(image_id)

    def _give_up_name(self, record: ImageRecord) -> None:
        owner = self._owner(record.image_id)
        if (found := _read(owner)) is not None and found.identity == record.identity:
            owner.unlink()

    def _spelled(self, filename: str) -> list[Path]:
        return [self._names / spelling for spelling in spellings.of_filename(filename)]

    def _read_whole(self, path: Path) -> ImageRecord | None:
        record = _read(path)
        return (
            record
            if record is not None and (record.sha256 is None or self._whole(record))
            else None
        )

    def _whole(self, record: ImageRecord) -> bool:
        """Return whether the record's SIF exists with the size that it was stored with."""
        try:
            return (
                record.sha256 is not None
                and self._sif(record.sha256).stat().st_size == record.size_bytes
            )
        except FileNotFoundError:
            return False

    def _sizes(self) -> dict[str, int]:
        """The size of every stored SIF, by its sha256."""
        sizes = {}
        with os.scandir(self._sifs) as entries:
            for entry in entries:
                if entry.name.endswith(".sif"):
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        sizes[entry.name.removesuffix(".sif")] = entry.stat().st_size
        return sizes

    def _sif(self, sha256: str) -> Path:
        return self._sifs / f"{sha256}.sif"

    def _lease(self, identity: str) -> Path:
        return self._leases / identity_digest(identity)

    def _last_use(self, identity: str) -> float:
        digest = identity_digest(identity)
        return max(
            map(
                _mtime,
                (self._leases / digest, self._records / f"{digest}.json", self._documents / digest),
            )
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the root for one writer among all processes; a killed one's lock is released."""
        with open(self.root / "lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class _KnownRecords:
    """Reads the records of a folder, and unchanged files only once.

    Lists of thousands of images stay quick.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, ...], ImageRecord]] = {}

    def read(self, suffix: str) -> dict[str, ImageRecord]:
        """Return the records by the names of their files.

        A record is never changed in place: a new one is a new file.
        """
        before, records = self._known, {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if (
                    entry.name.endswith(suffix)
                    and (known := self._record(entry, before.get(entry.name))) is not None
                ):
                    records[entry.name] = known
        self._known = records
        return {name: record for name, (_, record) in records.items()}

    def _record(
        self,
        entry: os.DirEntry[str],
        before: tuple[tuple[int, ...], ImageRecord] | None,
    ) -> tuple[tuple[int, ...], ImageRecord] | None:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if before is not None and before[0] == stamp:
            return before
        record = _read(Path(entry.path))
        return None if record is None else (stamp, shortened(record))


def _checked_sha256(sha256: str) -> str:
    if not is_sha256(sha256):
        raise ValueError(f"{sha256[:100]!r} is not a sha256")
    return sha256


def _pinnable(digest: str) -> str:
    return _checked_sha256(identity_digest(digest))


def _read(path: Path) -> ImageRecord | None:
    """Return a record, or None if the file is missing or is no record (a disk that failed)."""
    try:
        return ImageRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(path: Path, record: ImageRecord) -> None:
    """Replace a record in one step."""
    content = json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True)
    files.write_whole(path, content, mode=0o600)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
