"""What tells a bill of materials its parts: dpkg's status, wheels, Spack's recipes, and licences."""

from __future__ import annotations

import pytest

from image_builder.proof import debian
from image_builder.proof.debian import DebianPackage, installed_packages
from image_builder.proof.licences import spdx_expression
from image_builder.proof.spack_sources import source_of
from image_builder.proof.wheels import wheel

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.36-9)
Version: 2.36-9+deb12u1
Homepage: https://www.gnu.org/software/libc/libc.html
Description: GNU C Library
 Package: not-a-field
 .

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: libstdc++6
Status: hold ok installed
Architecture: arm64
Source: gcc-12
Version: 12.2.0-14

Package: ../../etc
Status: install ok installed
Architecture: amd64
Version: 1

Package: without-dpkg
Architecture: all
Version: 1:2~rc1
"""

DIGEST = "a" * 64
RECIPE = f"""
class Tiny(Package):
    homepage = "https://tiny.example.org"
    url = "https://tiny.example.org/tiny-1.2.tar.gz"
    git = "https://tiny.example.org/tiny.git"
    license("MIT", checked_by="someone")
    version("1.2.3", sha256="{"b" * 64}")
    version("1.2", sha256="{DIGEST}")
    version("1.1", sha256="{"c" * 64}", url="ftp://tiny.example.org/old.tgz")
    version("0.9", commit="{"d" * 40}")
"""


def test_what_dpkg_installed_is_listed_and_nothing_else() -> None:
    packages = installed_packages(STATUS)
    assert [str(package.name) for package in packages] == ["libc6", "libstdc++6", "without-dpkg"]
    assert packages[0] == DebianPackage(
        name="libc6",
        architecture="amd64",
        version="2.36-9+deb12u1",
        source="glibc",
        source_version="2.36-9",
        homepage="https://www.gnu.org/software/libc/libc.html",
    )
    assert (packages[1].source, packages[1].source_version) == ("gcc-12", "12.2.0-14")
    assert packages[2].source == "without-dpkg"


def test_a_status_of_endless_packages_is_refused() -> None:
    one = "Package: p{}\nArchitecture: all\nVersion: 1\n\n"
    endless = "".join(one.format(number) for number in range(debian.MAX_PACKAGES + 1))
    with pytest.raises(debian.TooManyPackages):
        installed_packages(endless)


def test_a_wheel_says_its_name_its_licence_and_its_origin() -> None:
    told = wheel(
        "/opt/view/lib/My_Tool-2.0.dist-info",
        b"Metadata-Version: 2.4\nName: My.Tool\nVersion: 2.0\nLicense-Expression: MIT\n\nLicense: no\n",
        b"my_tool/__init__.py,,\n",
        b'{"url": "https://x.example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
    )
    assert (told.name, told.project, told.version, told.licence) == (
        "My.Tool",
        "my-tool",
        "2.0",
        "MIT",
    )
    assert told.origin == "git+https://x.example.org/r.git@abc"
    assert told.record_sha256 is not None and len(told.record_sha256) == 64


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"Name: ../../x\nVersion: \x1b[2J\n",
        b"\xff\xfe\x00",
        b" Name: folded\n",
        b"Name\nVersion",
    ],
)
def test_a_wheel_that_says_nonsense_is_named_after_its_folder(metadata: bytes) -> None:
    told = wheel("/x/odd\n\x1b-1.0.dist-info", metadata, None, b"[1]")
    assert (told.name, told.version, told.origin, told.record_sha256) == ("odd", "1.0", "", None)


@pytest.mark.parametrize(
    ("version", "url", "checksum"),
    [
        ("1.2", "https://tiny.example.org/tiny-1.2.tar.gz", DIGEST),
        ("1.1", "ftp://tiny.example.org/old.tgz", "c" * 64),
        ("1.2.3", "", "b" * 64),
        ("0.9", f"git+https://tiny.example.org/tiny.git@{'d' * 40}", None),
        ("7", "", None),
    ],
)
def test_a_recipe_tells_what_it_has_word_for_word(
    version: str, url: str, checksum: str | None
) -> None:
    source = source_of(version, None, RECIPE.encode())
    assert source.url == url
    assert [digest for _, digest in source.checksums] == ([checksum] if checksum else [])
    assert (source.licence, source.homepage) == ("MIT", "https://tiny.example.org")


def test_of_several_licences_none_is_claimed() -> None:
    recipe = b'    license("MIT", when="@2:")\n    license("BSD-3-Clause", when="@:1")\n'
    source = source_of("2", None, recipe)
    assert source.licence == "" and source.conditional_licences == ("MIT", "BSD-3-Clause")


def test_spacks_own_document_goes_before_its_recipe() -> None:
    document = (
        b'{"packages": [{"downloadLocation": "https://mirror.example.org/t.tgz", '
        b'"licenseDeclared": "NOASSERTION", "checksum": [{"algorithm": "SHA256", "checksumValue": "%s"}]}]}'
        % (b"e" * 64)
    )
    source = source_of("1.2", document, RECIPE.encode())
    assert source.url == "https://mirror.example.org/t.tgz" and source.licence == "MIT"
    assert source.checksums == (("SHA256", "e" * 64),)


@pytest.mark.parametrize("document", [b"", b"[", b"[]", b"{}", b'{"packages": []}', b"[" * 100_000])
def test_a_document_that_is_none_is_passed_over(document: bytes) -> None:
    assert source_of("1.2", document, RECIPE.encode()).checksums == (("SHA256", DIGEST),)


def test_endless_recipes_are_read_in_linear_time() -> None:
    """Each would take hours, were a pattern to look at the rest of the text from every place."""
    for part in (b'version("1",', b'    license("x"', b"version(", b'    url = "'):
        source_of("1", None, part * (4_000_000 // len(part)))


@pytest.mark.parametrize(
    ("stated", "expression"),
    [
        ("MIT", "MIT"),
        ("apache-2.0 or mit", "Apache-2.0 OR MIT"),
        ("GPL-2.0-or-later WITH Classpath-exception-2.0",) * 2,
        ("BSD", None),
        ("MIT License", None),
        ("MIT AND", None),
        ("LicenseRef-scancode-public-domain", None),
        ("(" * 150, None),
        ("MIT OR " * 100 + "MIT", None),
        ("", None),
    ],
)
def test_only_what_spdx_lists_is_a_licence(stated: str, expression: str | None) -> None:
    assert spdx_expression(stated) == expression
