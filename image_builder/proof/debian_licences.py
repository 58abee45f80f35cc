"""Reads the licences of Debian packages from their copyright files, where these are for machines.

The form is Debian's "machine-readable debian/copyright file" (DEP-5, version 1.0): paragraphs, of
which each with `Files` names one licence, or several with `and` and `or`. A package has all that its
paragraphs name. Only names that Debian's form or SPDX's list defines become SPDX's; what a maintainer
calls `MIT`, `BSD` or `GPL` is not certain, and no package with such a part gets an expression.
"""

from __future__ import annotations

import re

from image_builder.proof.licences import Licence
from image_builder.proof.texts import plain

MAX_FILE_BYTES = 1024**2
MAX_BYTES = 64 * 1024**2
MAX_FILES = 20_000
MAX_NAME, MAX_EXPRESSION = 300, 1000
"""How long a licence's name may be to be read, and the expression of all together to be told."""
_DOC, _FILE = b"usr/share/doc/", b"/copyright"
_NAME = re.compile(rb"[a-z0-9][a-z0-9+.-]{0,200}")
_LINKED = re.compile(
    rb"(?:\.\./)*(?:usr/share/doc/|doc/)?([a-z0-9][a-z0-9+.-]{0,200})(?:/copyright)?"
)
_FORMAT = re.compile(r"^format:[ \t]*https?://\S+/copyright-format/1\.0/?[ \t\r]*$", re.I | re.M)
_BLANK_LINES = re.compile(r"\n[ \t\r]*\n")
_FIELD = re.compile(r"^(files|license):[ \t]*(.*)$", re.I | re.M)
_AND, _OR = re.compile(" and ", re.I), re.compile(" or ", re.I)
_VERSION = re.compile(r"-(\d+(?:\.\d+)*)(\+?)$")
_ZEROES = re.compile(r"(\.0)+$")
_OR_LATER = {
    **{f"gpl-{version}": f"GPL-{version}.0" for version in (1, 2, 3)},
    **{f"gfdl-{version}": f"GFDL-{version}" for version in (1.1, 1.2, 1.3)},
    **{f"gfdl-niv-{version}": f"GFDL-{version}-no-invariants" for version in (1.1, 1.2, 1.3)},
    "lgpl-2": "LGPL-2.0",
    "lgpl-2.1": "LGPL-2.1",
    "lgpl-3": "LGPL-3.0",
    "agpl-3": "AGPL-3.0",
}
"""Of a version alone, or with `+` of that and all later ones; versions without zeroes at the end."""
_EXACT = {
    "expat": "MIT",
    "openldap-2.8": "OLDAP-2.8",
    **{
        name.lower().removesuffix(".0"): name
        for name in (
            *("AFL-2.1", "Apache-2.0", "Artistic-2.0", "BSL-1.0", "CC0-1.0", "EPL-1.0", "EPL-2.0"),
            *("CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "MPL-1.1", "MPL-2.0"),
            *("BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause", "BSD-4-Clause-UC"),
            *("FSFAP", "FSFUL", "FSFULLR", "ISC", "OFL-1.1", "Zlib"),
        )
    },
}


def licence_of(text: str) -> Licence | None:
    """Return what a copyright file states, or None if it is not in the form for machines."""
    head, *paragraphs = _BLANK_LINES.split(text.lstrip())
    if not _FORMAT.search(head):
        return None
    names: dict[str, None] = {}
    for paragraph in paragraphs:
        fields = {found[1].lower(): found[2].strip() for found in _FIELD.finditer(paragraph)}
        if "files" in fields:
            names[fields.get("license", "")] = None
    if not names or "" in names:
        return None
    return Licence(stated=plain(", ".join(names)), expression=_all_of([*names]))


def _all_of(names: list[str]) -> str | None:
    """Return the expression for all of these at once, or None if one is not certain."""
    parts: dict[str, None] = {}
    for name in names:
        expression = _expression(name)
        if expression is None:
            return None
        if " OR " in expression:
            parts[f"({expression})"] = None
        else:
            parts.update(dict.fromkeys(expression.split(" AND ")))
    if len(parts) == 1:
        return next(iter(parts)).strip("()")
    together = " AND ".join(parts)
    return together if len(together) <= MAX_EXPRESSION else None


def _expression(name: str) -> str | None:
    """Return the expression for a paragraph's licence: `and` binds closer than `or`, as in SPDX."""
    if len(name) > MAX_NAME:
        return None
    choices = []
    for choice in _OR.split(" ".join(name.split())):
        together = [_identifier(one) for one in _AND.split(choice)]
        if None in together:
            return None
        choices.append(" AND ".join(map(str, together)))
    return " OR ".join(choices)


def _identifier(name: str) -> str | None:
    """Return SPDX's name of a licence: names are of any case, and `2.0` is the version `2`."""
    name = name.lower()
    found = _VERSION.search(name)
    if found is None:
        return _EXACT.get(name)
    short = f"{name[: found.start()]}-{_ZEROES.sub('', found[1])}"
    if short in _OR_LATER:
        return f"{_OR_LATER[short]}-{'or-later' if found[2] else 'only'}"
    return None if found[2] else _EXACT.get(short)


class LicencesSeen:
    """Collects licences of packages from an image's files, within bounds."""

    def __init__(self) -> None:
        self._licences: dict[bytes, Licence] = {}
        self._links: dict[bytes, bytes] = {}
        self._left = MAX_BYTES

    def wants(self, path: bytes, size_bytes: int) -> bool:
        """Return whether a file is a copyright file that there is room for."""
        return (
            _package_of(path) is not None
            and size_bytes <= min(MAX_FILE_BYTES, self._left)
            and len(self._licences) < MAX_FILES
        )

    def take(self, path: bytes, body: bytes) -> None:
        """Read a copyright file."""
        package = _package_of(path)
        self._left -= len(body)
        licence = licence_of(body.decode("utf-8", "replace"))
        if package is not None and licence is not None:
            self._licences[package] = licence

    def link(self, path: bytes, target: bytes) -> None:
        """Note a link from the folder of one package, or its copyright file, to that of another."""
        package = _package_of(path) or _package_of(path + _FILE)
        found = _LINKED.fullmatch(target)
        if package is not None and found is not None and len(self._links) < MAX_FILES:
            self._links[package] = found[1]

    def by_package(self) -> dict[str, Licence]:
        """Return what was found, by the names of packages."""
        linked = {
            package: self._licences[target]
            for package, target in self._links.items()
            if target in self._licences
        }
        return {name.decode(): one for name, one in (linked | self._licences).items()}


def _package_of(path: bytes) -> bytes | None:
    if not (path.startswith(_DOC) and path.endswith(_FILE)):
        return None
    name = path[len(_DOC) : -len(_FILE)]
    return name if _NAME.fullmatch(name) else None
