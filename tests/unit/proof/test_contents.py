"""What is installed in an image, as its files tell it: a stream that Python's tarfile wrote."""

from __future__ import annotations

import io
import tarfile
import tempfile

from image_builder.host.cancellation import CancelToken
from image_builder.proof import debian_licences
from image_builder.proof.contents import Contents, ContentsReader

METADATA = b"Metadata-Version: 2.1\nName: six\nVersion: 1.17\nLicense: MIT\n\nLong text.\n"


def read(*members: tuple[str, bytes | str]) -> Contents:
    """Read an archive of files with their contents, and of hard links with what they link to."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, content in members:
                member = tarfile.TarInfo(name)
                if isinstance(content, str):
                    member.type, member.linkname = tarfile.LNKTYPE, content
                    archive.addfile(member)
                else:
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        file.seek(0)
        reader = ContentsReader(())
        reader.read(file.fileno(), CancelToken())
        return reader.contents()


def test_a_package_whose_files_are_hard_links_is_named_as_any_other() -> None:
    """As installers make them that keep a cache beside what they install."""
    cached, installed = "cache/x/six-1.17.dist-info", "opt/env/six-1.17.dist-info"
    found = read(
        (f"{cached}/METADATA", METADATA),
        (f"{cached}/RECORD", b"six.py,,\n"),
        (f"{installed}/METADATA", f"{cached}/METADATA"),
        (f"{installed}/RECORD", f"./{cached}/RECORD"),
    )
    assert [one.folder for one in found.wheels] == [f"/{cached}", f"/{installed}"]
    first, second = found.wheels
    assert (first.name, first.version, first.licence) == ("six", "1.17", "MIT")
    assert (second.name, second.version) == ("six", "1.17")
    assert first.record_sha256 == second.record_sha256 is not None


def test_links_to_what_was_not_kept_are_passed_over() -> None:
    found = read(
        ("srv/METADATA", METADATA),
        ("opt/six-1.17.dist-info/METADATA", "srv/METADATA"),
        ("srv/other/METADATA", "opt/six-1.17.dist-info/METADATA"),
    )
    assert found.wheels == ()


def test_licences_of_debian_packages_are_read_and_a_large_file_is_passed_over() -> None:
    head = b"Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
    text = head + b"Files: *\nCopyright: Some Body\nLicense: GPL-2+\n"
    found = read(
        ("usr/share/doc/adduser/copyright", text),
        ("usr/share/doc/other/copyright", text + b" " * debian_licences.MAX_FILE_BYTES),
    )
    assert {name: one.expression for name, one in found.licences.items()} == {
        "adduser": "GPL-2.0-or-later"
    }
