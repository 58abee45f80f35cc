"""Reads and writes the SIF format: what is in a file, and whether it is whole.

A SIF is a header, a table of descriptors, and the objects that they describe. The primary system
partition holds the container's files as squashfs.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
import struct
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

MAGIC = b"SIF_MAGIC\0"
VERSION = b"01\0"
ARCHITECTURES = {
    "386": b"01\0",
    "amd64": b"02\0",
    "arm": b"03\0",
    "arm64": b"04\0",
    "ppc64": b"05\0",
    "ppc64le": b"06\0",
    "s390x": b"11\0",
    "riscv64": b"12\0",
}
"""The header's codes, by the architecture in a platform such as `linux/arm64`."""

SQUASHFS = 1
PRIMARY_SYSTEM = 2
SPDX_JSON = struct.pack("<i", 4)
"""What a descriptor says of a bill of materials in SPDX's JSON."""

_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<i?3I7q128s384s")
_PARTITION = struct.Struct("<2i3s")
_SQUASHFS_SUPERBLOCK = struct.Struct("<5I6H8Q")
_SQUASHFS_MAGIC = 0x73717368
_MAX_DESCRIPTORS = 4096

_MAGIC_END, _ID_OFFSET, _ID_BYTES = 45, 48, 16
"""Where the version in a header ends, and its identifier: what a signature covers of it."""
METADATA_TYPE = "application/vnd.sylabs.sif-metadata+json"
"""The type of what a signature of a SIF is of."""
NO_GROUP = 0xF0000000
_SHA256_SIGNATURE = struct.pack("<i", 1)
"""What a descriptor says of a signature: that its digests are SHA-256."""
_TABLE_OFFSET = 4096
_TABLE_SLOTS = 48
_PARTITION_ALIGNMENT = 4096
_CHUNK_BYTES = 1024**2
_LAUNCH = b"#!/usr/bin/env run-singularity\n"


class BadSif(ValueError):
    """The file is not a whole SIF, or not the expected one."""


class DataType(enum.IntEnum):
    """Says what an object of a SIF is."""

    DEFINITION = 0x4001
    ENVIRONMENT = 0x4002
    LABELS = 0x4003
    PARTITION = 0x4004
    SIGNATURE = 0x4005
    GENERIC_JSON = 0x4006
    GENERIC = 0x4007
    CRYPTO_MESSAGE = 0x4008
    SBOM = 0x4009
    OCI_ROOT_INDEX = 0x400A
    OCI_BLOB = 0x400B


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descriptor:
    """Describes one object: type, place in the file, name. `extra` depends on the type."""

    data_type: int
    id: int
    group: int
    link: int
    offset: int
    size_bytes: int
    name: str
    extra: bytes = dataclasses.field(repr=False)

    @property
    def is_primary_partition(self) -> bool:
        return (
            self.data_type == DataType.PARTITION
            and _PARTITION.unpack_from(self.extra)[1] == PRIMARY_SYSTEM
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sif:
    """Holds what a SIF's header and descriptors say; `architecture` is such as `arm64`."""

    architecture: str
    descriptors: tuple[Descriptor, ...]

    @property
    def primary(self) -> Descriptor:
        """Return the descriptor of the primary system partition.

        Raises `BadSif` unless there is exactly one.
        """
        partitions = [one for one in self.descriptors if one.is_primary_partition]
        if len(partitions) != 1:
            raise BadSif(f"it has {len(partitions)} primary system partitions")
        return partitions[0]


def read(path: Path) -> Sif:
    """Return the header and descriptors of a SIF, all of whose objects are within the file.

    Raises `BadSif`.
    """
    with open(path, "rb") as file:
        return _read(file, path.stat().st_size)


def verify(path: Path, *, platform: str | None = None) -> Sif:
    """Check that a SIF is whole and can be run on `platform`, and return what it says.

    Header, objects, and its squashfs to the last byte are checked. Raises `BadSif` with the reason.
    """
    sif = read(path)
    primary = sif.primary
    filesystem, _, architecture = _PARTITION.unpack_from(primary.extra)
    if platform is not None and platform.split("/")[1] != sif.architecture:
        raise BadSif(f"it is for {sif.architecture}, not for {platform}")
    if architecture != ARCHITECTURES[sif.architecture]:
        raise BadSif("its partition is for another architecture than its header says")
    if filesystem != SQUASHFS:
        raise BadSif("its primary partition is not squashfs")
    with open(path, "rb") as file:
        file.seek(primary.offset)
        superblock = file.read(_SQUASHFS_SUPERBLOCK.size)
    _check_squashfs(superblock, primary.size_bytes)
    return sif


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
    """Holds something to be written into a SIF; `extra` is as in a descriptor."""

    data_type: int
    content: bytes
    name: str = ""
    group: int = 0
    link: int = 0
    extra: bytes = b""


def objects(path: Path) -> list[Object]:
    """Return the small objects of a SIF, all but its partitions, in their order."""
    with open(path, "rb") as file:
        small = []
        for descriptor in read(path).descriptors:
            if descriptor.data_type != DataType.PARTITION:
                file.seek(descriptor.offset)
                small.append(
                    Object(
                        data_type=descriptor.data_type,
                        content=file.read(descriptor.size_bytes),
                        name=descriptor.name,
                        group=descriptor.group,
                        link=descriptor.link,
                        extra=descriptor.extra,
                    )
                )
    return small


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Names a part of a file: a whole squashfs, or the one in a SIF."""

    path: Path
    offset: int
    size_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digests:
    """Holds the SHA-256 of parts of a SIF, in hexadecimal digits.

    `head` is that of header and descriptors, all that comes before the first object; `objects` are
    those of the small objects by their names.
    """

    head: str
    squashfs: str
    objects: Mapping[str, str]


UNKNOWN_DIGEST = "0" * 64
"""What stands for the digest of the head while that is not known."""


class Evidence(Protocol):
    """Makes what a SIF says about itself, once its other parts are known.

    What is made is as long for any digests, since the head tells its length.
    """

    def first(self) -> Sequence[Object]:
        """Return objects that depend on no other part."""

    def last(self, digests: Digests) -> Sequence[Object]:
        """Return objects about the SIF's other parts."""

    def seal(self, metadata: bytes) -> bytes | None:
        """Return the signed form of what `apptainer verify` compares; None for no signature."""


class NoEvidence:
    """Leaves a SIF as Singularity's own `build` makes it."""

    def first(self) -> Sequence[Object]:
        return ()

    def last(self, digests: Digests) -> Sequence[Object]:
        return ()

    def seal(self, metadata: bytes) -> bytes | None:
        return None


def rewrite(source: Path, target: Path, *, time_s: int, evidence: Evidence) -> str:
    """Write a SIF with the objects of another one and `evidence`; return its sha256."""
    sif = read(source)
    primary = sif.primary
    squashfs = Span(path=source, offset=primary.offset, size_bytes=primary.size_bytes)
    writer = _Writer(sif.architecture, squashfs, primary.group, time_s, evidence)
    return writer.write(target, objects(source))


def write(
    path: Path,
    *,
    architecture: str,
    small: Sequence[Object],
    squashfs: Path,
    group: int,
    time_s: int,
    evidence: Evidence | None = None,
) -> str:
    """Write a SIF of small objects and a primary partition; return its sha256.

    The objects get the numbers from 1 on, the partition the last one. Equal parts make equal files:
    `time_s`, in seconds since 1970, is the only time in it.
    """
    whole = Span(path=squashfs, offset=0, size_bytes=squashfs.stat().st_size)
    return _Writer(architecture, whole, group, time_s, evidence or NoEvidence()).write(path, small)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Lays out a SIF and writes it: its head, small objects, and the squashfs."""

    architecture: str
    squashfs: Span
    group: int
    time_s: int
    evidence: Evidence

    def write(self, path: Path, small: Sequence[Object]) -> str:
        small = [*small, *self._grouped(self.evidence.first())]
        digests = self._digests(small)
        # What comes last is as long as it will be; so head and offsets are final.
        layout = self._layout(self._with_last(small, digests), digests)
        digests = dataclasses.replace(digests, head=hashlib.sha256(layout.head).hexdigest())
        final = self._with_last(small, digests)
        front = layout.head + b"".join(item.content for item in final)
        if len(front) > layout.partition_offset or self._layout(final, digests) != layout:
            raise BadSif("what it says about itself changed its length")
        return _write_file(path, front.ljust(layout.partition_offset, b"\0"), self.squashfs)

    def _with_last(self, small: Sequence[Object], digests: Digests) -> list[Object]:
        """Return the small objects with those about the others: a statement, then a signature."""
        every = [*small, *self._grouped(self.evidence.last(digests))]
        sealed = self.evidence.seal(self._metadata(every, digests))
        if sealed is not None:
            every.append(
                Object(
                    data_type=DataType.SIGNATURE,
                    content=sealed,
                    group=NO_GROUP,
                    link=self.group,
                    extra=_SHA256_SIGNATURE,
                )
            )
        return every

    def _metadata(self, items: Sequence[Object], digests: Digests) -> bytes:
        """Return what a signature of the group is of: digests of all that may not change.

        Offsets, times of change and unused fields may, as far as SIF's signatures go.
        """
        header = self._header(digests, 0, 0, 0)
        kept = header[:_MAGIC_END] + header[_ID_OFFSET : _ID_OFFSET + _ID_BYTES]
        rows = [
            (number, item, len(item.content), hashlib.sha256(item.content).hexdigest())
            for number, item in enumerate(items, 1)
        ]
        # The partition comes behind the signature, which is in no group.
        rows.append((len(items) + 2, self._partition(), self.squashfs.size_bytes, digests.squashfs))
        first = min(number for number, item, _, _ in rows if item.group == self.group)
        objects = [
            {
                "relativeId": number - first,
                "descriptorDigest": f"sha256:{self._described(item, number - first, size)}",
                "objectDigest": f"sha256:{digest}",
            }
            for number, item, size, digest in rows
            if item.group == self.group
        ]
        content = {
            "version": 1,
            "header": {"digest": f"sha256:{hashlib.sha256(kept).hexdigest()}"},
            "objects": objects,
        }
        return json.dumps(content, separators=(",", ":")).encode()

    def _described(self, item: Object, relative_id: int, size: int) -> str:
        """Return the digest of what a descriptor says that may not change."""
        fields = (item.data_type, True, relative_id, item.link, size, self.time_s, 0, 0)
        kept = struct.pack("<i?2I4q128s384s", *fields, item.name.encode(), item.extra)
        return hashlib.sha256(kept).hexdigest()

    def _partition(self) -> Object:
        code = ARCHITECTURES[self.architecture]
        return Object(
            data_type=DataType.PARTITION,
            content=b"",
            group=self.group,
            extra=_PARTITION.pack(SQUASHFS, PRIMARY_SYSTEM, code),
        )

    def _grouped(self, items: Sequence[Object]) -> list[Object]:
        """Return the objects as members of the partition's group, which is verified as a whole."""
        return [dataclasses.replace(item, group=self.group) for item in items]

    def _digests(self, small: Sequence[Object]) -> Digests:
        return Digests(
            head=UNKNOWN_DIGEST,
            squashfs=_sha256(b"", self.squashfs),
            objects={
                item.name or f"object {number}": hashlib.sha256(item.content).hexdigest()
                for number, item in enumerate(small, 1)
            },
        )

    def _layout(self, small: Sequence[Object], digests: Digests) -> _Layout:
        """Return the head for these objects, of which only length and description matter."""
        begin = offset = _TABLE_OFFSET + _TABLE_SLOTS * _DESCRIPTOR.size
        table = []
        for number, item in enumerate(small, 1):
            table.append(self._descriptor(item, number, offset, len(item.content)))
            offset += len(item.content)
        partition_offset = -(-offset // _PARTITION_ALIGNMENT) * _PARTITION_ALIGNMENT
        size_bytes = self.squashfs.size_bytes
        table.append(
            self._descriptor(
                self._partition(), len(small) + 1, partition_offset, size_bytes, after=offset
            )
        )
        if len(table) > _TABLE_SLOTS:
            raise BadSif(f"it would have more than {_TABLE_SLOTS} objects")
        header = self._header(digests, len(table), begin, partition_offset + size_bytes - begin)
        head = header.ljust(_TABLE_OFFSET, b"\0") + b"".join(table).ljust(
            _TABLE_SLOTS * _DESCRIPTOR.size, b"\0"
        )
        return _Layout(head=head, partition_offset=partition_offset)

    def _header(self, digests: Digests, used: int, begin: int, data_bytes: int) -> bytes:
        return _HEADER.pack(
            _LAUNCH,
            MAGIC,
            VERSION,
            ARCHITECTURES[self.architecture],
            self._id(digests),
            self.time_s,
            self.time_s,
            _TABLE_SLOTS - used,
            _TABLE_SLOTS,
            _TABLE_OFFSET,
            _TABLE_SLOTS * _DESCRIPTOR.size,
            begin,
            data_bytes,
        )

    def _descriptor(
        self, item: Object, number: int, offset: int, size: int, after: int | None = None
    ) -> bytes:
        """Return the row of an object; `after` is the end of the one before it."""
        return _DESCRIPTOR.pack(
            item.data_type,
            True,
            number,
            item.group,
            item.link,
            offset,
            size,
            size + offset - (offset if after is None else after),
            self.time_s,
            self.time_s,
            0,
            0,
            item.name.encode(),
            item.extra,
        )

    def _id(self, digests: Digests) -> bytes:
        """Return the identifier of a SIF, which follows from its parts."""
        parts = json.dumps([digests.squashfs, digests.objects], sort_keys=True)
        return uuid.UUID(bytes=hashlib.sha256(parts.encode()).digest()[:16], version=4).bytes


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Holds the first bytes of a SIF, and where its partition begins."""

    head: bytes
    partition_offset: int


def _write_file(path: Path, front: bytes, squashfs: Span) -> str:
    end = len(front) + squashfs.size_bytes
    with open(path, "xb") as target, ThreadPoolExecutor(1) as executor:
        target.write(front)
        target.flush()
        digest = executor.submit(_sha256, front, squashfs)
        _copy(squashfs, target)
        if os.fstat(target.fileno()).st_size != end:
            raise BadSif("its squashfs changed while it was copied")
        os.fdatasync(target.fileno())  # while it is being hashed, so that publishing waits less
        return digest.result()


def _sha256(head: bytes, rest: Span) -> str:
    digest = hashlib.sha256(head)
    with open(rest.path, "rb", buffering=0) as file:
        file.seek(rest.offset)
        left = rest.size_bytes
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _copy(source: Span, target: BinaryIO) -> None:
    """Append a part of a file to an open one, without copying it through our memory."""
    at, end = source.offset, source.offset + source.size_bytes
    with open(source.path, "rb") as file:
        while at < end:
            count = min(end - at, 64 * _CHUNK_BYTES)
            moved = os.sendfile(target.fileno(), file.fileno(), at, count)
            if not moved:
                break
            at += moved


def squashfs_inodes(path: Path) -> int:
    """Return how many inodes a squashfs file has. Raises `BadSif` when it is not whole."""
    with open(path, "rb") as file:
        superblock = file.read(_SQUASHFS_SUPERBLOCK.size)
    _check_squashfs(superblock, path.stat().st_size)
    return int(_SQUASHFS_SUPERBLOCK.unpack(superblock)[1])


def _read(file: BinaryIO, file_bytes: int) -> Sif:
    raw = file.read(_HEADER.size)
    if len(raw) < _HEADER.size:
        raise BadSif("it is shorter than a header")
    _, magic, version, code, _, _, _, free, total, offset, size, data_offset, data_size = (
        _HEADER.unpack(raw)
    )
    if magic != MAGIC or version != VERSION:
        raise BadSif("it does not begin as a SIF")
    architecture = next((name for name, known in ARCHITECTURES.items() if known == code), None)
    if architecture is None:
        raise BadSif(f"its header names an unknown architecture {code!r}")
    if not (
        0 <= free <= total <= _MAX_DESCRIPTORS
        and size >= total * _DESCRIPTOR.size
        and offset >= _HEADER.size
    ):
        raise BadSif("its descriptor table makes no sense")
    if data_offset + data_size > file_bytes:
        raise BadSif(f"it has {file_bytes} bytes of {data_offset + data_size}")
    file.seek(offset)
    table = file.read(total * _DESCRIPTOR.size)
    if len(table) < total * _DESCRIPTOR.size:
        raise BadSif("its descriptor table is cut")
    return Sif(architecture=architecture, descriptors=tuple(_descriptors(table, file_bytes)))


def _descriptors(table: bytes, file_bytes: int) -> list[Descriptor]:
    descriptors = []
    for fields in _DESCRIPTOR.iter_unpack(table):
        data_type, used, number, group, link, offset, size, _, _, _, _, _, name, extra = fields
        if not used:
            continue
        if offset < 0 or size < 0 or offset + size > file_bytes:
            raise BadSif(f"its object {number} is not within the file")
        descriptors.append(
            Descriptor(
                data_type=data_type,
                id=number,
                group=group,
                link=link,
                offset=offset,
                size_bytes=size,
                name=name.rstrip(b"\0").decode("utf-8", "replace"),
                extra=extra,
            )
        )
    return descriptors


def _check_squashfs(superblock: bytes, partition_bytes: int) -> None:
    if len(superblock) < _SQUASHFS_SUPERBLOCK.size:
        raise BadSif("its squashfs is cut")
    fields = _SQUASHFS_SUPERBLOCK.unpack(superblock)
    magic, inodes, used_bytes = fields[0], fields[1], fields[12]
    if magic != _SQUASHFS_MAGIC:
        raise BadSif("its primary partition does not begin as squashfs")
    if inodes == 0 or used_bytes > partition_bytes:
        raise BadSif(f"its squashfs has {partition_bytes} bytes of {used_bytes}")
