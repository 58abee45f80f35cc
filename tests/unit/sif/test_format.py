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
    format.write(
        path,
        architecture=architecture,
        small=small,
        squashfs=squashfs(folder),
        group=7,
        time_s=1_700_000_000,
    )
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
        time_s=0,
    )
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_writing_takes_little_memory(tmp_path: Path) -> None:
    source = squashfs(tmp_path, size=64 * 1024**2)
    tracemalloc.start()
    try:
        format.write(
            tmp_path / "made.sif",
            architecture="amd64",
            small=SMALL,
            squashfs=source,
            group=1,
            time_s=0,
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


class Says:
    """Evidence of this test: a statement that repeats all digests, and may change its length."""

    def __init__(self, unsteady: bool = False) -> None:
        self.unsteady = unsteady

    def first(self) -> list[Object]:
        return [Object(data_type=DataType.SBOM, content=b"{}", name="sbom", extra=format.SPDX_JSON)]

    def last(self, digests: format.Digests) -> list[Object]:
        text = f"{digests.head} {digests.squashfs} {sorted(digests.objects.items())}"
        if self.unsteady and digests.head != format.UNKNOWN_DIGEST:
            text += "!"
        return [Object(data_type=DataType.GENERIC_JSON, content=text.encode(), name="says")]

    def seal(self, metadata: bytes) -> bytes | None:
        return None


def with_evidence(folder: Path, *, evidence: format.Evidence, time_s: int = 7) -> Path:
    path = folder / "made.sif"
    path.unlink(missing_ok=True)
    format.write(
        path,
        architecture="amd64",
        small=SMALL,
        squashfs=squashfs(folder),
        group=7,
        time_s=time_s,
        evidence=evidence,
    )
    return path


def test_what_a_sif_says_about_itself_is_true_of_its_bytes(tmp_path: Path) -> None:
    path = with_evidence(tmp_path, evidence=Says())
    content, sif = path.read_bytes(), format.verify(path)
    says = next(item for item in sif.descriptors if item.name == "says")
    head, partition, rest = content[says.offset :][: says.size_bytes].decode().split(" ", 2)
    parts = {
        item.name: hashlib.sha256(content[item.offset :][: item.size_bytes]).hexdigest()
        for item in sif.descriptors
    }
    assert partition == parts[""] and f"('sbom', '{parts['sbom']}')" in rest
    assert head == hashlib.sha256(content[: sif.descriptors[0].offset]).hexdigest()
    assert {item.group for item in sif.descriptors} == {7}
    sbom = next(item for item in sif.descriptors if item.data_type == DataType.SBOM)
    assert sbom.extra[:4] == struct.pack("<i", 4)


def test_equal_parts_make_equal_files_and_others_other_ones(tmp_path: Path) -> None:
    made = [
        with_evidence(tmp_path, evidence=evidence, time_s=time_s).read_bytes()
        for evidence, time_s in ((Says(), 7), (Says(), 7), (format.NoEvidence(), 7), (Says(), 8))
    ]
    assert made[0] == made[1]
    assert len(set(made)) == 3


def test_evidence_that_changes_its_length_makes_no_sif(tmp_path: Path) -> None:
    with pytest.raises(BadSif, match="changed its length"):
        with_evidence(tmp_path, evidence=Says(unsteady=True))
    assert not (tmp_path / "made.sif").exists()


def test_a_sif_is_written_anew_with_what_it_had(tmp_path: Path) -> None:
    original = written(tmp_path)
    target = tmp_path / "anew.sif"
    digest = format.rewrite(original, target, time_s=7, evidence=Says())
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()
    names = [item.name for item in format.verify(target).descriptors]
    assert names == ["", "oci-config.json", "sbom", "says", ""]
    before, after = format.read(original).primary, format.read(target).primary
    partitions = [
        path.read_bytes()[item.offset :][: item.size_bytes]
        for path, item in ((original, before), (target, after))
    ]
    assert partitions[0] == partitions[1]
