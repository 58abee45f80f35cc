"""Reads what a build's steps wrote down of what they used. Pure.

Debian's lists are from before any code of a description ran. What pip took is written by a step in
which the code of packages may run: it is read by its shape, and says nothing about other images.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from image_builder.proof.debian import installed_packages
from image_builder.recipe.pins import Deb, Part, PythonPackage

BASE_STATUS, STATUS, DEBS = "base/status", "system/status", "system/debs"
LATER_STATUS, PIP = "prepared/status", "prepared/pip"
NAMES = (BASE_STATUS, STATUS, DEBS, LATER_STATUS, PIP)
"""The files that the stage `used` exports, as far as they are there."""
MAX_BYTES = 64 * 1024**2
MAX_PYTHON_PACKAGES = 20_000
_SUM = re.compile(r"SHA256:([0-9a-f]{64}) ([A-Za-z0-9.+:~%_-]{1,400}\.deb)\Z")
_SHA256, _COMMIT = re.compile(r"[0-9a-f]{64}\Z"), re.compile(r"[0-9a-f]{40,64}\Z")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9])?\Z")
_VERSION = re.compile(r"[A-Za-z0-9.+!_-]{1,200}\Z")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]{0,300}\Z")
_URL = re.compile(r"[a-z+]{1,12}://[A-Za-z0-9._~:/?@!$&()*+,;=%-]{0,1000}\Z")
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,300}\Z")


class UnreadableUse(ValueError):
    """What the steps wrote down is not what the recipe's programs write."""


class Debian(Part):
    """Lists Debian packages: the base image's, and what the apt step added or replaced."""

    base: tuple[Deb, ...] = ()
    added: tuple[Deb, ...] = ()
    later: tuple[Deb, ...] = ()
    """What came after that step, as when a script or pip's step runs apt; read by its shape."""


def debian_of(files: Mapping[str, bytes]) -> Debian:
    """Return the Debian packages of a build. Raises `UnreadableUse`."""
    base = _installed(files.get(BASE_STATUS, b""))
    system = _installed(files.get(STATUS, b""))
    sums = _sums(files.get(DEBS, b"").decode("utf-8", "replace"))
    later = _installed(files.get(LATER_STATUS, b"")) - base - system
    return Debian(
        base=tuple(_deb(one) for one in sorted(base)),
        added=tuple(_deb(one, sums) for one in sorted(system - base)),
        later=tuple(_deb(one) for one in sorted(later)),
    )


_Triple = tuple[str, str, str]


def _installed(status: bytes) -> set[_Triple]:
    try:
        packages = installed_packages(status.decode("utf-8", "replace"))
    except ValueError as error:
        raise UnreadableUse(str(error)) from error
    return {(one.name, one.architecture, one.version) for one in packages}


def _sums(text: str) -> dict[str, str]:
    """Return the digests of the archive's files by their names."""
    sums = {}
    for line in text.splitlines():
        match = _SUM.match(line)
        if match is None:
            raise UnreadableUse(f"{line[:100]!r} is no line of apt's list of files")
        sums[match[2]] = match[1]
    return sums


def _deb(package: _Triple, sums: Mapping[str, str] | None = None) -> Deb:
    name, architecture, version = package
    # apt quotes the colon of an epoch in the names of files (apt-pkg/acquire-item.cc).
    file = f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
    sha256 = (sums or {}).get(file)
    return Deb(
        name=name,
        architecture=architecture,
        version=version,
        file=file if sha256 else None,
        sha256=sha256,
    )


def python_packages(files: Mapping[str, bytes]) -> tuple[PythonPackage, ...]:
    """Return what pip said that it took, in order of name. Raises `UnreadableUse`."""
    lines = files.get(PIP, b"").decode("utf-8", "replace").splitlines()
    if len(lines) > MAX_PYTHON_PACKAGES:
        raise UnreadableUse(f"pip took more than {MAX_PYTHON_PACKAGES} packages")
    return tuple(sorted(map(_python_package, lines), key=lambda one: (one.project, one.version)))


def _python_package(line: str) -> PythonPackage:
    try:
        said: dict[str, Any] = json.loads(line)
        return PythonPackage(
            name=_shaped(said.pop("name"), _NAME),
            version=_shaped(said.pop("version"), _VERSION),
            file=_optional(said.pop("file", None), _FILE),
            sha256=_optional(said.pop("sha256", None), _SHA256),
            url=_address(said.pop("url", None)),
            commit=_optional(said.pop("commit", None), _COMMIT),
            subdirectory=_optional(said.pop("subdirectory", None), _FOLDER),
            **said,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableUse(f"{line[:100]!r} does not say what pip took") from error


def _optional(value: Any, shape: re.Pattern[str]) -> str | None:
    return None if value is None else _shaped(value, shape)


def _shaped(value: Any, shape: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not shape.match(value) or ".." in value:
        raise ValueError(f"{value!r:.100} has another shape")
    return value


def _address(value: Any) -> str | None:
    """Return an address without what may be secret in it; None for a folder of the build."""
    if value is None or str(value).startswith("file:"):
        return None
    parts = urllib.parse.urlsplit(_shaped(value, _URL))
    netloc = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, netloc, parts.path, "", ""))
