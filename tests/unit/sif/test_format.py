"""The SIF format: what is written is read back, and nothing that is cut or of another kind passes
for whole.
"""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from pathlib import Path

import pytest

from image_builder.sif import format
from image_builder.sif.format import BadSif, DataType, Object

SMALL = (
    Object(data_type=DataType.DEFINITION, content=b"bootstrap: x\n", group=7),
    Object(
        data_type=DataType.GENERIC_JSON, content=b"{}", name="oci-config.json", group=7, extra=b"e"
    ),
)

PARTITION = 32_768
"""Where the partition begins behind objects as small as these."""


def squashfs(
    folder: Path, *, size: int = 200_000, used: int | None = None, magic: int = 0x73717368
) -> Path:
    """A file that begins as squashfs; what comes after its superblock is noise."""
    path = folder / "made.squashfs"
    superblock = struct.pack(
        "<5I6H8Q", magic, 42, 0, 131072, 0, 1, 17, 0, 1, 4, 0, 0, used or size, *(0,) * 6
    )
    path.write_bytes(superblock + bytes(size - len(superblock)))
    return path


def written(folder: Path, architecture: str = "amd64", small: tuple[Object, ...] = SMALL) -> Path:
    path = folder / "made.sif"
    format.write(path, architecture=architecture, small=small, squashfs=squashfs(folder), group=7)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path, "arm64")
    read = format.verify(path, platform="linux/arm64")
    assert read.architecture == "arm64"
    assert [(item.id, item.data_type, item.group) for item in read.descriptors] == [
        (1, DataType.DEFINITION, 7),
        (2, DataType.GENERIC_JSON, 7),
        (3, DataType.PARTITION, 7),
    ]
    assert read.primary.offset == PARTITION and read.primary.size_bytes == 200_000
    assert [(item.name, item.content) for item in format.objects(path)] == [
        ("", b"bootstrap: x\n"),
        ("oci-config.json", b"{}"),
    ]


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "made.sif"
    digest = format.write(
        path,
        architecture="amd64",
        small=SMALL,
        squashfs=squashfs(tmp_path, size=5_000_001),
        group=1,
    )
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_writing_takes_little_memory(tmp_path: Path) -> None:
    source = squashfs(tmp_path, size=64 * 1024**2)
    tracemalloc.start()
    try:
        format.write(
            tmp_path / "made.sif", architecture="amd64", small=SMALL, squashfs=source, group=1
        )
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(FileExistsError):
        written(tmp_path)


@pytest.mark.parametrize("platform", ["linux/arm64", "linux/arm64/v8", "linux/ppc64le"])
def test_another_platform_is_told(tmp_path: Path, platform: str) -> None:
    with pytest.raises(BadSif, match="amd64"):
        format.verify(written(tmp_path), platform=platform)


def test_no_cut_file_passes(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for length in (
        0,
        1,
        127,
        128,
        4096,
        32_000,
        32_176,
        PARTITION,
        len(content) // 2,
        len(content) - 1,
    ):
        path.write_bytes(content[:length])
        with pytest.raises(BadSif):
            format.verify(path, platform="linux/amd64")


@pytest.mark.parametrize(
    ("offset", "new", "reason"),
    [
        (0, b"\x7fELF" + bytes(60), "begin as a SIF"),
        (32, b"SIF_MAGIC!", "begin as a SIF"),
        (45, b"99\0", "unknown architecture"),
        (80, b"\xff" * 8, "no sense"),
        (88, struct.pack("<q", 10**6), "no sense"),
        (4096, bytes(585 * 3), "0 primary"),
        (4096 + 17, b"\xff" * 8, "within the file"),
        (PARTITION, b"nope", "begin as squashfs"),
        (PARTITION + 4, bytes(4), "squashfs has"),
    ],
)
def test_what_is_damaged_is_told(tmp_path: Path, offset: int, new: bytes, reason: str) -> None:
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[offset : offset + len(new)] = new
    path.write_bytes(content)
    with pytest.raises(BadSif, match=reason):
        format.verify(path, platform="linux/amd64")


def test_a_squashfs_that_says_it_is_longer_is_told(tmp_path: Path) -> None:
    assert format.squashfs_inodes(squashfs(tmp_path)) == 42
    with pytest.raises(BadSif, match="200000 bytes of 200001"):
        format.squashfs_inodes(squashfs(tmp_path, used=200_001))
    with pytest.raises(BadSif, match="begin as squashfs"):
        format.squashfs_inodes(squashfs(tmp_path, magic=1))
