"""Reads what dpkg says is installed, from its status file. Pure."""

from __future__ import annotations

import dataclasses
import re

from image_builder.proof.texts import header_fields, plain

MAX_PACKAGES = 20_000
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,200}\Z")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9-]{0,40}\Z")
_VERSION = re.compile(r"[A-Za-z0-9.+:~-]{1,200}\Z")
_SOURCE = re.compile(r"([a-z0-9][a-z0-9+.-]{0,200})(?: \(([A-Za-z0-9.+:~-]{1,200})\))?\Z")


class TooManyPackages(ValueError):
    """The status file names more packages than an image has."""


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class DebianPackage:
    """Describes an installed package; `source` and `source_version` say what it was built from."""

    name: str
    architecture: str
    version: str
    source: str
    source_version: str
    maintainer: str = ""
    homepage: str = ""


def installed_packages(status: str) -> list[DebianPackage]:
    """Return the packages that a status file lists as installed, in order of name.

    Raises `TooManyPackages`.
    """
    packages: set[DebianPackage] = set()
    for stanza in re.split(r"\n[ \t]*\n", status):
        package = _package(header_fields(stanza.lstrip("\n")))
        if package is not None:
            packages.add(package)
            if len(packages) > MAX_PACKAGES:
                raise TooManyPackages(f"dpkg's status names more than {MAX_PACKAGES} packages")
    return sorted(packages)


def _package(fields: dict[str, str]) -> DebianPackage | None:
    """Return what a stanza describes; None for what is not installed, or named as dpkg never does.

    A stanza without a status, as images without dpkg keep them, is of an installed package.
    """
    name, version = fields.get("Package", ""), fields.get("Version", "")
    architecture = fields.get("Architecture", "")
    status = fields.get("Status", "install ok installed").split()
    if (
        status[-1:] != ["installed"]
        or not _NAME.match(name)
        or not _VERSION.match(version)
        or not _ARCHITECTURE.match(architecture)
    ):
        return None
    source = _SOURCE.match(fields.get("Source", ""))
    return DebianPackage(
        name=name,
        architecture=architecture,
        version=version,
        source=source[1] if source else name,
        source_version=(source[2] if source else None) or version,
        maintainer=plain(fields.get("Maintainer", "")),
        homepage=plain(fields.get("Homepage", "")),
    )
