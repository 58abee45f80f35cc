"""Reads and writes the SIF format: what is in a file, and whether it is whole.

A SIF is a header, a table of descriptors, and the objects that they describe. The primary system
partition holds the container's files as squashfs.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
import struct
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

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


def in_group(evidence: Sequence[Object], group: int) -> list[Object]:
    """Return the objects as members of a group: what verifies a group looks at these, too."""
    return [dataclasses.replace(item, group=group) for item in evidence]


def rewrite(source: Path, target: Path, *, evidence: Sequence[Object]) -> str:
    """Write a SIF with the objects of another one and `evidence`; return its sha256."""
    sif = read(source)
    primary = sif.primary
    return _write(
        target,
        architecture=sif.architecture,
        small=(*objects(source), *in_group(evidence, primary.group)),
        squashfs=Span(path=source, offset=primary.offset, size_bytes=primary.size_bytes),
        group=primary.group,
    )


def write(
    path: Path, *, architecture: str, small: Sequence[Object], squashfs: Path, group: int
) -> str:
    """Write a SIF of small objects and a primary partition, in one pass; return its sha256.

    The objects get the numbers from 1 on, the partition the last one.
    """
    whole = Span(path=squashfs, offset=0, size_bytes=squashfs.stat().st_size)
    return _write(path, architecture=architecture, small=small, squashfs=whole, group=group)


def _write(
    path: Path, *, architecture: str, small: Sequence[Object], squashfs: Span, group: int
) -> str:
    code, now = ARCHITECTURES[architecture], int(time.time())
    squashfs_bytes = squashfs.size_bytes
    begin = offset = _TABLE_OFFSET + _TABLE_SLOTS * _DESCRIPTOR.size
    table, bodies = [], bytearray()
    for number, item in enumerate(small, 1):
        table.append(
            _DESCRIPTOR.pack(
                item.data_type,
                True,
                number,
                item.group,
                item.link,
                offset,
                len(item.content),
                len(item.content),
                now,
                now,
                0,
                0,
                item.name.encode(),
                item.extra,
            )
        )
        bodies += item.content
        offset += len(item.content)
    partition_offset = -(-offset // _PARTITION_ALIGNMENT) * _PARTITION_ALIGNMENT
    end = partition_offset + squashfs_bytes
    table.append(
        _DESCRIPTOR.pack(
            DataType.PARTITION,
            True,
            len(small) + 1,
            group,
            0,
            partition_offset,
            squashfs_bytes,
            end - offset,
            now,
            now,
            0,
            0,
            b"",
            _PARTITION.pack(SQUASHFS, PRIMARY_SYSTEM, code),
        )
    )
    header = _HEADER.pack(
        _LAUNCH,
        MAGIC,
        VERSION,
        code,
        uuid.uuid4().bytes,
        now,
        now,
        _TABLE_SLOTS - len(table),
        _TABLE_SLOTS,
        _TABLE_OFFSET,
        _TABLE_SLOTS * _DESCRIPTOR.size,
        begin,
        end - begin,
    )
    head = (
        header.ljust(_TABLE_OFFSET, b"\0")
        + b"".join(table).ljust(_TABLE_SLOTS * _DESCRIPTOR.size, b"\0")
        + bodies
    )
    with open(path, "xb") as target, ThreadPoolExecutor(1) as executor:
        target.write(head.ljust(partition_offset, b"\0"))
        target.flush()
        digest = executor.submit(_sha256, head.ljust(partition_offset, b"\0"), squashfs)
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
