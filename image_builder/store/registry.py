"""Stores finished images in an OCI registry, for `singularity pull oras://…` on clusters.

Everything is a tag of one repository. A tag is an artifact of its own, which carries its record as
an annotation:

    <name>                    the SIF of this name, without `.sif`
    sha256.<sha256>           a SIF, with the record it was stored with
    identity.<identity>       the newest image of an identity, with its SIF if it has one
    documents.<identity>      what it was made from
    sha256-<digest>.sig       the signature of the artifact that a name means, as cosign reads it
    pin.<digest>              clean-up leaves this SIF, or the images of this identity, alone
    image.<sha256>            which identity owns a name among Docker images, and since which request
    name.<sha256>             a name that cannot be a tag, or looks like one of those above

A SIF is uploaded before any tag means it, and the registry checks its digest; a tag moves in one
step. What is deleted here frees room when the registry's own garbage collection runs, so that a
download goes on meanwhile.

Leases and half-written files are in a local folder: they count for the processes of one machine.
Other machines see by the time of the last use what is in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from image_builder.docker.label_names import RECORD, TAG, TITLE, USED_AT
from image_builder.host import file_leases
from image_builder.host.files import sha256_of
from image_builder.store import spellings
from image_builder.store.folder import ImageStore
from image_builder.store.oci_client import (
    MANIFEST,
    Body,
    Manifest,
    OciRepository,
    RegistryUnavailable,
    beside_tag,
)
from image_builder.store.record import (
    SIGNED,
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

SIF_CONFIG = "application/vnd.sylabs.sif.config.v1+json"
SIF_LAYER = "application/vnd.sylabs.sif.layer.v1.sif"
"""What `singularity pull oras://` takes."""
OTHER_CONFIG = "application/vnd.cic.record.v1+json"
TEXT_LAYER = "text/plain"

LIST_AGE_S = 30.0
REFRESHED = 100
"""How many known tags a list asks for again once they are older than `LIST_AGE_S`, oldest first.

A registry answers for one tag at a time. New tags, and a single image, are always asked for.
"""
READERS = 8
MAX_RESUMES = 5

_RESERVED = re.compile(
    r"(sha256|identity|documents|pin|name)\.|image\.[0-9a-f]{64}\Z|sha256-[0-9a-f]{64}\.(sig|att)\Z"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


PutBeside = Callable[[OciRepository, str], None]
"""Puts beside the artifact of this digest what proves it."""


class RegistryImages:
    """Stores the finished images in one repository; `Images` says what each method does.

    With `beside`, signed SIFs have a proof beside them before a name means them.
    """

    def __init__(
        self, repository: OciRepository, local: Path, *, beside: PutBeside | None = None
    ) -> None:
        self.repository, self._local = repository, ImageStore(local)
        self._beside = beside
        self._known: dict[str, tuple[float, Manifest | None]] = {}

    def using(self, identity: str) -> contextlib.AbstractContextManager[None]:
        return self._local.using(identity)

    def temporary_path(self) -> contextlib.AbstractContextManager[Path]:
        return self._local.temporary_path()

    def unused(self, identity: str) -> contextlib.AbstractContextManager[bool]:
        return self._local.unused(identity, is_pinned=self.is_pinned(identity))

    def leftovers(self) -> dict[Path, int]:
        return self._local.leftovers()

    def sweep(self) -> int:
        return self._local.sweep()

    def publish(
        self, temporary: Path, record: ImageRecord, *, sha256: str | None = None
    ) -> ImageRecord:
        checked_filename(record.filename)
        if sha256 is None:
            with temporary.open("rb") as file:
                sha256 = sha256_of(file)
        _require_sha256(sha256)
        layer = self.repository.put_file(temporary, sha256)
        full = record.model_copy(update={"sha256": sha256, "size_bytes": layer["size"]})
        self._put_record(f"sha256.{sha256}", full)
        self._point(full)
        temporary.unlink()
        return full

    def point(self, record: ImageRecord) -> ImageRecord:
        checked_filename(record.filename)
        stored = self.by_sha256(record.sha256 or "")
        if (
            stored is None
            or self.repository.blob_bytes(f"sha256:{record.sha256}") != record.size_bytes
        ):
            raise LookupError(f"no SIF {record.sha256} is stored")
        # A removal that another machine has begun then deletes the old manifest only.
        self._put_record(f"sha256.{record.sha256}", stored)
        self._point(record)
        return record

    def naming(self, image_id: str) -> contextlib.AbstractContextManager[bool]:
        return self._local.naming(image_id)

    def take_name(self, record: ImageRecord) -> bool:
        tag = f"image.{name_digest(record.image_id)}"
        owner = _read(self.repository.manifest(tag))
        if not may_take_name(owner, record):
            return False
        if not was_asked_later(owner, record):
            self._put_record(tag, record)
        return True

    def record(self, record: ImageRecord) -> ImageRecord:
        record = with_sif_of(self.by_identity(record.identity), record)
        self._put_record(f"identity.{identity_digest(record.identity)}", record)
        return record

    def keep_documents(self, identity: str, documents: Mapping[str, str | None]) -> None:
        tag = f"documents.{identity_digest(identity)}"
        together = {**self._texts(identity), **documents}
        layers = [
            {
                "mediaType": TEXT_LAYER,
                "annotations": {TITLE: name},
                **self.repository.put_blob(text.encode()),
            }
            for name, text in sorted(together.items())
            if text is not None
        ]
        self._put(tag, OTHER_CONFIG, layers, {})

    def documents(self, identity: str) -> tuple[str, ...]:
        return tuple(sorted(self._text_layers(identity)))

    def document(self, identity: str, name: str) -> str | None:
        layer = self._text_layers(identity).get(name)
        if layer is None:
            return None
        return self.repository.small_blob(layer["digest"]).decode("utf-8", "replace")

    def by_name(self, filename: str) -> ImageRecord | None:
        if not is_filename(filename):
            return None
        names = spellings.of_filename(filename)
        records = (self._record(_tag_of(name), filename=name) for name in names)
        return next((record for record in records if record is not None), None)

    def by_sha256(self, sha256: str) -> ImageRecord | None:
        return self._record(f"sha256.{sha256}") if is_sha256(sha256) else None

    def by_identity(self, identity: str) -> ImageRecord | None:
        digest = identity_digest(identity)
        return self._record(f"identity.{digest}") if is_sha256(digest) else None

    def images(self) -> list[ImageRecord]:
        records = (_read(manifest) for _, manifest in self._listed(_is_of("sha256")))
        return sorted(
            (shortened(record) for record in records if record is not None),
            key=lambda record: record.created,
            reverse=True,
        )

    def names(self) -> dict[str, ImageRecord]:
        records = {}
        for tag, manifest in self._listed(_is_name):
            record = _read(manifest)
            if (
                record is not None
                and record.filename is not None
                and _tag_of(record.filename) == tag
            ):
                records[record.filename] = shortened(record)
        return dict(sorted(records.items()))

    def identities(self) -> dict[str, float]:
        last_uses = self._local.identities()
        for tag, manifest in self._listed(_is_of("identity", "documents")):
            digest = tag.partition(".")[2]
            last_uses[digest] = max(last_uses.get(digest, 0.0), _used_at(manifest))
        return last_uses

    def is_known(self, identity: str) -> bool:
        digest = identity_digest(identity)
        return is_sha256(digest) and any(
            self.repository.manifest(f"{kind}.{digest}") is not None
            for kind in ("identity", "documents")
        )

    def last_use(self, record: ImageRecord) -> float:
        tags = (f"sha256.{record.sha256}", f"identity.{identity_digest(record.identity)}")
        manifests = [
            self._known[tag][1] if tag in self._known else self.repository.manifest(tag)
            for tag in tags
        ]
        return max([*map(_used_at, manifests), self._local.lease_used_at(record.identity)])

    def path_of(self, sha256: str) -> Path | None:
        return None

    def address_of(self, filename: str) -> str | None:
        return f"oras://{self.repository.host}/{self.repository.name}:{_tag_of(filename)}"

    @contextlib.contextmanager
    def opened(self, sha256: str) -> Iterator[BinaryIO]:
        _require_sha256(sha256)
        with file_leases.held(self._reading(sha256)):
            size_bytes = (
                self.repository.blob_bytes(f"sha256:{sha256}") if self.by_sha256(sha256) else None
            )
            if size_bytes is None:
                raise FileNotFoundError(sha256)
            with contextlib.closing(_RemoteFile(self.repository, sha256, size_bytes)) as file:
                yield file  # type: ignore[misc]

    def pin(self, digest: str) -> None:
        self._put(f"pin.{identity_digest(digest)}", OTHER_CONFIG, [], {})

    def unpin(self, digest: str) -> None:
        self._delete(f"pin.{identity_digest(digest)}")

    def is_pinned(self, digest: str) -> bool:
        return self.repository.manifest(f"pin.{identity_digest(digest)}") is not None

    def is_kept(self, record: ImageRecord) -> bool:
        assert record.sha256 is not None
        return (
            self.is_pinned(record.sha256)
            or self.is_pinned(record.identity)
            or file_leases.is_held(self._reading(record.sha256))
            or self._local.is_leased(record.identity)
        )

    def remove(self, sha256: str, *, unless: Callable[[], bool] = lambda: False) -> bool:
        with contextlib.ExitStack() as stack:
            pointers = {
                tag: manifest
                for tag, manifest in self._listed(lambda _: True)
                if _sha256_in(manifest) == sha256
            }
            identities = {
                record.identity
                for manifest in pointers.values()
                if (record := _read(manifest)) is not None
            }
            locks = [file_leases.alone(self._reading(sha256)), *map(self.unused, identities)]
            if not all(list(map(stack.enter_context, locks))) or self.is_pinned(sha256) or unless():
                return False
            if any(self.repository.manifest(tag) != manifest for tag, manifest in pointers.items()):
                self._known.clear()  # another machine uses it
                return False
            # The SIF's own record goes last.
            for tag in sorted(pointers, key=lambda tag: tag.startswith("sha256.")):
                self._delete_manifest(tag, pointers[tag])
        return True

    def forget(self, identity: str) -> bool:
        digest = identity_digest(identity)
        with self.unused(identity) as free:
            record = self.by_identity(identity)
            if not free or (record is not None and record.sha256 is not None):
                return False
            if record is not None:
                self._give_up_name(record)
            self._delete(f"identity.{digest}")
            self._delete(f"documents.{digest}")
        self._local.forget(identity)
        return True

    def texts_bytes(self, identity: str) -> int:
        return sum(int(layer["size"]) for layer in self._text_layers(identity).values())

    def _point(self, record: ImageRecord) -> None:
        """Write the name last, so that a name that is served has its record.

        An earlier spelling of the name follows if it exists.
        """
        self._put_record(f"identity.{identity_digest(record.identity)}", record)
        for name in spellings.of_filename(record.filename or ""):
            manifest = self.repository.manifest(_tag_of(name))
            if was_asked_later(_read(manifest), record):
                continue
            if name == record.filename or manifest is not None:
                self._put_record(_tag_of(name), record.model_copy(update={"filename": name}))

    def _give_up_name(self, record: ImageRecord) -> None:
        manifest = self.repository.manifest(f"image.{name_digest(record.image_id)}")
        owner = _read(manifest)
        if owner is not None and owner.identity == record.identity:
            self._delete_manifest(f"image.{name_digest(record.image_id)}", manifest)

    def _put_record(self, tag: str, record: ImageRecord) -> None:
        annotations = {RECORD: json.dumps(record.model_dump(mode="json"), sort_keys=True)}
        if record.sha256 is None:
            self._put(tag, OTHER_CONFIG, [], annotations)
            return
        layer = {
            "mediaType": SIF_LAYER,
            "digest": f"sha256:{record.sha256}",
            "size": record.size_bytes,
            "annotations": {TITLE: record.filename or f"{record.sha256}.sif"},
        }
        is_proven = _is_name(tag) and bool(record.details.get(SIGNED))
        self._put(tag, SIF_CONFIG, [layer], annotations, is_proven=is_proven)

    def _put(
        self,
        tag: str,
        config_type: str,
        layers: list[dict[str, Any]],
        annotations: dict[str, str],
        *,
        is_proven: bool = False,
    ) -> None:
        """Let a tag mean these layers and annotations.

        The tag's own name and the time are annotations, so no two tags share a manifest, and each
        is deleted alone.
        """
        earlier = self.repository.manifest(tag)
        config = {"mediaType": config_type, **self.repository.put_blob(b"{}")}
        content = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": annotations | {TAG: tag, USED_AT: f"{time.time():.3f}"},
        }
        if is_proven and self._beside is not None:
            self._beside(self.repository, self.repository.digest_of(content))
        digest = self.repository.put_manifest(tag, content)
        self._known.pop(tag, None)
        if earlier is not None and earlier.digest != digest:
            self.repository.delete_manifest(earlier.digest)
            self._delete_beside(tag, earlier)

    def _delete(self, tag: str) -> None:
        self._delete_manifest(tag, self.repository.manifest(tag))

    def _delete_manifest(self, tag: str, found: Manifest | None) -> None:
        """Delete this manifest alone: if its tag means another one by now, that stays."""
        if found is not None and not self.repository.delete_manifest(found.digest):
            raise RegistryUnavailable(
                f"The registry {self.repository.host} does not allow deletion.",
                hint="Allow it (docker-registry: storage.delete.enabled), or clean up there.",
            )
        self._known.pop(tag, None)
        self._delete_beside(tag, found)

    def _delete_beside(self, tag: str, gone: Manifest | None) -> None:
        """Delete the signature of an artifact that a name meant."""
        if gone is None or not _is_name(tag):
            return
        signatures = self.repository.manifest(beside_tag(gone.digest, "sig"))
        if signatures is not None:
            self.repository.delete_manifest(signatures.digest)

    def _record(self, tag: str, *, filename: str | None = None) -> ImageRecord | None:
        """Return what a tag means, or None if that is a SIF that another machine has removed."""
        record = _read(self.repository.manifest(tag))
        if record is None or (filename is not None and record.filename != filename):
            return None
        stored = f"sha256.{record.sha256}"
        is_there = (
            record.sha256 is None or tag == stored or self.repository.manifest(stored) is not None
        )
        return record if is_there else None

    def _listed(self, is_wanted: Callable[[str], bool]) -> list[tuple[str, Manifest]]:
        """Return the wanted tags with their manifests, without those whose SIF is missing."""
        everything, begun = set(self.repository.tags()), time.monotonic()
        tags = sorted(filter(is_wanted, everything))
        known = {tag: entry for tag, entry in self._known.items() if tag in everything}
        old = sorted(
            (known[tag][0], tag)
            for tag in tags
            if tag in known and begun - known[tag][0] > LIST_AGE_S
        )
        asked = [tag for tag in tags if tag not in known] + [tag for _, tag in old[:REFRESHED]]
        with ThreadPoolExecutor(READERS) as readers:
            fresh = {
                tag: (begun, manifest)
                for tag, manifest in zip(
                    asked, readers.map(self.repository.manifest, asked), strict=True
                )
            }
        self._known = {**known, **fresh}
        listed = [(tag, manifest) for tag in tags if (manifest := self._known[tag][1]) is not None]
        return [
            (tag, manifest)
            for tag, manifest in listed
            if (sha256 := _sha256_in(manifest)) is None or f"sha256.{sha256}" in everything
        ]

    def _text_layers(self, identity: str) -> dict[str, Any]:
        digest = identity_digest(identity)
        manifest = self.repository.manifest(f"documents.{digest}") if is_sha256(digest) else None
        return {} if manifest is None else manifest.layers_by_title

    def _texts(self, identity: str) -> dict[str, str]:
        names = self.documents(identity)
        return {name: text for name in names if (text := self.document(identity, name)) is not None}

    def _reading(self, sha256: str) -> Path:
        return self._local.root / "leases" / f"reading-{sha256}"


class _RemoteFile(io.RawIOBase):
    """Reads a blob as a file from any byte on, and reconnects where a connection breaks."""

    def __init__(self, repository: OciRepository, sha256: str, size_bytes: int) -> None:
        self._repository, self._digest, self._size_bytes = (
            repository,
            f"sha256:{sha256}",
            size_bytes,
        )
        self._at = 0
        self._stack = contextlib.ExitStack()
        self._body: Body | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[
            whence
        ] + offset
        if place != self._at:
            self._hang_up()
            self._at = place
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        wanted = (
            self._size_bytes - self._at
            if size is None or size < 0
            else min(size, self._size_bytes - self._at)
        )
        parts: list[bytes] = []
        resumes = 0
        while wanted > 0:
            part = self._some(wanted)
            resumes = 0 if part else resumes + 1
            if resumes > MAX_RESUMES:
                raise RegistryUnavailable(
                    f"The registry {self._repository.host} breaks off again and again."
                )
            if not part:
                self._hang_up()
            parts.append(part)
            wanted -= len(part)
            self._at += len(part)
        return b"".join(parts)

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _some(self, wanted: int) -> bytes:
        try:
            if self._body is None:
                self._body = self._stack.enter_context(
                    self._repository.blob(self._digest, begin=self._at)
                )
            return self._body.read(wanted)
        except RegistryUnavailable:
            return b""

    def _hang_up(self) -> None:
        self._body = None
        self._stack.close()


def _is_of(*kinds: str) -> Callable[[str], bool]:
    """Return a test that says whether a tag is of one of these kinds, with a digest."""
    return lambda tag: tag.partition(".")[0] in kinds and is_sha256(tag.partition(".")[2])


def _is_name(tag: str) -> bool:
    return tag.startswith("name.") or not _RESERVED.match(tag)


def _require_sha256(text: str) -> None:
    if not is_sha256(text):
        raise ValueError(f"{text[:100]!r} is not a sha256")


def _tag_of(filename: str) -> str:
    stem = filename.removesuffix(".sif")
    if _TAG.fullmatch(stem) and not _RESERVED.match(stem):
        return stem
    return f"name.{hashlib.sha256(filename.encode()).hexdigest()}"


def _read(manifest: Manifest | None) -> ImageRecord | None:
    """Return the record of an artifact if it is one of ours and its layers match it, or None."""
    if manifest is None:
        return None
    try:
        record = ImageRecord.model_validate_json(manifest.annotations.get(RECORD, ""))
    except ValidationError:
        return None
    if manifest.content.get("layers") != manifest.layers:
        return None
    layers = [layer["digest"] for layer in manifest.layers]
    return record if layers == ([f"sha256:{record.sha256}"] if record.sha256 else []) else None


def _sha256_in(manifest: Manifest | None) -> str | None:
    record = _read(manifest)
    return None if record is None else record.sha256


def _used_at(manifest: Manifest | None) -> float:
    said = manifest.annotations.get(USED_AT, "") if manifest is not None else ""
    with contextlib.suppress(ValueError):
        return float(said)
    return 0.0
