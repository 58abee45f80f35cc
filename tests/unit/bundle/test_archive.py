"""A bundle's archive: every byte of it is what its manifest says, or nothing of it is used."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_builder.bundle import archive
from image_builder.bundle.archive import MANIFEST
from image_builder.bundle.manifest import BadBundle, Manifest
from image_builder.bundle.opening import Trust
from image_builder.errors import Cancelled, NoSpace
from image_builder.host.cancellation import CancelToken
from image_builder.proof.keys import Signer, read_signer
from tests.support.bundles import write_parts, written
from tests.support.planning import request
from tests.support.signing import make_key

EXTRA = {
    "debs/system/bc_1.07.1-3+b1_amd64.deb": b"a package",
    "sources/_source-cache/archive/" + "ab/" * 20 + "c" * 64 + ".tar.gz": b"a long name",
    "wheels/six-1.17.0-py2.py3-none-any.whl": b"w" * 2000,
    "empty": b"",
}


def unpack(bundle: bytes, root: Path, **more: object) -> Manifest:
    (root / "bundle.tar").write_bytes(bundle)
    folder = root / "unpacked" / str(len(list(root.iterdir())))
    folder.mkdir(parents=True)
    read, _ = archive.read(
        root / "bundle.tar",
        folder,
        **{  # type: ignore[arg-type]
            "accept": lambda text, signature: False,
            "require": lambda manifest: None,
            "cancel": CancelToken(),
            **more,
        },
    )
    return read


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundle")


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    return write_parts(root, request(), EXTRA)


@pytest.fixture(scope="module")
def whole(root: Path, manifest: Manifest) -> bytes:
    return written(root, manifest)


@pytest.fixture(scope="module")
def signer(root: Path) -> Signer:
    return read_signer(make_key(root / "key.pem", "ed25519"))


@pytest.fixture(scope="module")
def signed(root: Path, manifest: Manifest, signer: Signer) -> Path:
    """A signed one as a file, which a failing test shows by its name."""
    (root / "signed.tar").write_bytes(written(root, manifest, signer))
    return root / "signed.tar"


def test_what_is_read_is_what_was_written(whole: bytes, manifest: Manifest, tmp_path: Path) -> None:
    assert unpack(whole, tmp_path) == manifest
    (folder,) = (tmp_path / "unpacked").iterdir()
    for path, content in EXTRA.items():
        assert (folder / path).read_bytes() == content
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
        file.path for file in manifest.files
    }


def test_every_user_of_a_build_step_can_read_it(whole: bytes, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        unpack(whole, tmp_path)
    finally:
        os.umask(before)
    (folder,) = (tmp_path / "unpacked").iterdir()
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in [folder, *folder.rglob("*")]}
    assert modes == {(True, 0o755), (False, 0o644)}


def test_it_is_a_tar_archive_as_others_read_it(whole: bytes, manifest: Manifest) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole)) as read:
        assert read.getnames() == [MANIFEST, *(file.path for file in manifest.files)]
        assert {member.uid for member in read} == {0}


def test_equal_bundles_are_equal_files(whole: bytes, root: Path, manifest: Manifest) -> None:
    assert written(root, manifest) == whole


def test_it_is_hardly_larger_than_its_parts(tmp_path: Path) -> None:
    of_size = write_parts(tmp_path, request(), {"images/layer": os.urandom(200_000)})
    assert len(written(tmp_path, of_size)) <= 1.2 * sum(file.size for file in of_size.files)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_anywhere_of_a_signed_one_is_refused(
    place: float,
    bit: int,
    signed: Path,
    signer: Signer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    edited = bytearray(signed.read_bytes())
    edited[int(place * len(edited))] ^= 1 << bit
    with pytest.raises(BadBundle):
        unpack(
            bytes(edited),
            tmp_path_factory.mktemp("edited"),
            accept=Trust(keys=(signer.public_pem,)).accept,
        )


@pytest.mark.parametrize("left", [0, 100, 512, 700, 5000, -1, -600, -3000])
def test_a_cut_one_is_refused_before_anything_is_unpacked(
    left: int, whole: bytes, tmp_path: Path
) -> None:
    with pytest.raises(BadBundle, match=r"is cut|is no bundle"):
        unpack(whole[:left], tmp_path)
    assert [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()] == []


def test_more_behind_its_end_is_refused(whole: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="holds more than"):
        unpack(whole + bytes(512), tmp_path)


def with_member(manifest: Manifest, member: tarfile.TarInfo) -> bytes:
    """An archive whose first file is another member, as long as the one that belongs there."""
    file = manifest.files[0]
    content = written_text(manifest)
    member.size = file.size
    return content + member.tobuf(tarfile.PAX_FORMAT)


def written_text(manifest: Manifest) -> bytes:
    text = manifest.text()
    return archive.header(MANIFEST, len(text)) + text + bytes(-len(text) % 512)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(
    "other",
    [
        member("../../outside"),
        member("/etc/cron.d/job"),
        member("debs", tarfile.SYMTYPE, "/etc"),
        member("debs", tarfile.LNKTYPE, "manifest.json"),
        member("debs", tarfile.CHRTYPE),
        member("debs", tarfile.FIFOTYPE),
        member("debs", tarfile.DIRTYPE),
        member("another.deb"),
    ],
    ids=["out", "absolute", "link", "hard link", "device", "pipe", "folder", "other name"],
)
def test_only_the_files_of_the_manifest_are_written(
    other: tarfile.TarInfo, manifest: Manifest, whole: bytes, tmp_path: Path
) -> None:
    edited = with_member(manifest, other)
    with pytest.raises(BadBundle, match="edited or damaged at"):
        unpack(edited + whole[len(edited) :], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle.tar", "unpacked"}


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(BadBundle):
            archive.read(
                path,
                tmp_path,
                accept=lambda text, signature: False,
                require=lambda manifest: None,
                cancel=CancelToken(),
            )


def test_a_disk_with_too_little_room_is_not_filled(whole: bytes, tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        unpack(whole, tmp_path, min_free_bytes=2**62)
    assert [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()] == []


def test_it_is_cancelled_while_it_is_unpacked(whole: bytes, tmp_path: Path) -> None:
    cancel = CancelToken()
    cancel.cancel("enough")
    with pytest.raises(Cancelled):
        unpack(whole, tmp_path, cancel=cancel)
