"""Licences of Debian packages: SPDX's names where they are certain, and nothing but words elsewhere."""

from __future__ import annotations

import pytest
from license_expression import get_spdx_licensing

from image_builder.proof import debian_licences
from image_builder.proof.debian_licences import LicencesSeen, licence_of
from image_builder.proof.licences import Licence

HEAD = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"


def copyright_file(*licences: str) -> str:
    """A file with a paragraph for each licence, and a licence's text that is nobody's."""
    paragraphs = [
        f"Files: part{number}/*\nCopyright: Some Body\nLicense: {licence}\n text\n .\n more\n"
        for number, licence in enumerate(licences)
    ]
    return "\n".join([HEAD, *paragraphs, "License: Nobodys\n its text\n"])


@pytest.mark.parametrize(
    ("licences", "expression"),
    [
        (["GPL-2+"], "GPL-2.0-or-later"),
        (["gpl-2"], "GPL-2.0-only"),
        (["LGPL-2.1+"], "LGPL-2.1-or-later"),
        (["LGPL-3.0"], "LGPL-3.0-only"),
        (["GFDL-NIV-1.3+"], "GFDL-1.3-no-invariants-or-later"),
        (["Expat"], "MIT"),
        (["Apache-2"], "Apache-2.0"),
        (["BSD-3-clause"], "BSD-3-Clause"),
        (["zlib", "Expat", "zlib"], "Zlib AND MIT"),
        (["Expat or GPL-2+"], "MIT OR GPL-2.0-or-later"),
        (["Expat or GPL-2+ and ISC", "Zlib"], "(MIT OR GPL-2.0-or-later AND ISC) AND Zlib"),
        (["Expat and ISC", "ISC"], "MIT AND ISC"),
        (["MIT"], None),
        (["BSD"], None),
        (["GPL"], None),
        (["GPL-9"], None),
        (["Apache-2.0+"], None),
        (["public-domain"], None),
        (["GPL-2+ with OpenSSL exception"], None),
        (["GPL-2+ or Artistic, and ISC"], None),
        (["GPL-2+", "public-domain"], None),
        (["GPL-2+ or " * 40 + "ISC"], None),
    ],
)
def test_only_certain_names_become_an_expression(
    licences: list[str], expression: str | None
) -> None:
    found = licence_of(copyright_file(*licences))
    assert found is not None and found.expression == expression
    assert found.stated == ", ".join(dict.fromkeys(licences))[: debian_licences.MAX_NAME]


def test_every_name_is_one_of_spdx() -> None:
    listed = [
        *debian_licences._EXACT.values(),
        *(
            f"{name}-{which}"
            for name in debian_licences._OR_LATER.values()
            for which in ("only", "or-later")
        ),
    ]
    for name in listed:
        assert str(get_spdx_licensing().parse(name, validate=True, strict=True)) == name


@pytest.mark.parametrize(
    "text",
    [
        "This is free software.\n\nFiles: *\nLicense: GPL-2+\n",
        HEAD,
        f"{HEAD}\nLicense: GPL-2+\n text\n",
        f"{HEAD}\nFiles: *\nLicense: GPL-2+\n\nFiles: other\nCopyright: Some Body\n",
        f"{HEAD}\nFiles: *\nLicense:\n GPL-2+\n",
        "",
    ],
)
def test_what_is_not_in_the_form_states_nothing(text: str) -> None:
    assert licence_of(text) is None


def seen(*files: tuple[bytes, bytes]) -> LicencesSeen:
    licences = LicencesSeen()
    for path, body in files:
        if licences.wants(path, len(body)):
            licences.take(path, body)
    return licences


def test_folders_that_are_links_have_what_they_lead_to() -> None:
    body = copyright_file("Expat").encode()
    licences = seen(
        (b"usr/share/doc/gcc-12-base/copyright", body),
        (b"usr/share/doc/a/b/copyright", body),
        (b"srv/usr/share/doc/c/copyright", body),
        (b"usr/share/doc/UPPER/copyright", body),
    )
    licences.link(b"usr/share/doc/libgcc-s1", b"gcc-12-base")
    licences.link(b"usr/share/doc/d/copyright", b"../gcc-12-base/copyright")
    licences.link(b"usr/share/doc/e", b"../../../etc")
    licences.link(b"usr/share/doc/f", b"f")
    expat = Licence("Expat", "MIT")
    assert licences.by_package() == {"gcc-12-base": expat, "libgcc-s1": expat, "d": expat}


def test_what_is_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    body = copyright_file("Expat").encode()
    files = [(f"usr/share/doc/p{number}/copyright".encode(), body) for number in range(5)]
    monkeypatch.setattr(debian_licences, "MAX_FILE_BYTES", len(body) - 1)
    assert seen(*files).by_package() == {}
    monkeypatch.setattr(debian_licences, "MAX_FILE_BYTES", len(body))
    monkeypatch.setattr(debian_licences, "MAX_BYTES", 3 * len(body))
    assert set(seen(*files).by_package()) == {"p0", "p1", "p2"}
    monkeypatch.setattr(debian_licences, "MAX_FILES", 2)
    assert set(seen(*files).by_package()) == {"p0", "p1"}
