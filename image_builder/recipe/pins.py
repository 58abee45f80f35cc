"""Names Debian and Python packages exactly, as a build that is made again gets them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Is a frozen part of a document; fields that it does not know are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Deb(Part):
    """Names a Debian package; `file` and `sha256` are what the archive's signed list says of it."""

    name: str
    architecture: str
    version: str
    file: str | None = None
    sha256: str | None = None


class PythonPackage(Part):
    """Names what pip installed: a file with its digest, or a commit of a repository.

    `url` is the place that a requirement itself names; what came from an index has none. What has
    neither digest nor commit came from the step's own folder.
    """

    name: str
    version: str
    file: str | None = None
    sha256: str | None = None
    url: str | None = None
    commit: str | None = None
    subdirectory: str | None = None

    @property
    def project(self) -> str:
        """Return the name as package indexes normalise it."""
        return canonicalize_name(self.name)


APT_PINS, APT_VERSIONS, PIP_PINS = "pins.apt", "versions.apt", "pins.pip"
"""Files of the recipe: apt's preferences, the packages that have to be there, and pip's files."""


def apt_preferences(debs: Sequence[Deb]) -> str:
    """Return preferences with which apt takes these versions, be they older than what is there."""
    return "\n".join(
        f"Package: {one.name}:{one.architecture}\nPin: version {one.version}\nPin-Priority: 1001\n"
        if one.architecture != "all"
        else f"Package: {one.name}\nPin: version {one.version}\nPin-Priority: 1001\n"
        for one in debs
    )


def apt_versions(debs: Sequence[Deb]) -> str:
    """Return the packages that the archive must still have, a name and a version each line."""
    return "".join(f"{line}\n" for line in sorted({f"{one.name} {one.version}" for one in debs}))


def pip_files(packages: Sequence[PythonPackage]) -> str:
    """Return requirements for the files of these packages, each with its digest.

    What came from a repository or the step's folder is no file.
    """
    return "".join(
        f"{one.project} @ {one.url} --hash=sha256:{one.sha256}\n"
        if one.url
        else f"{one.project}=={one.version} --hash=sha256:{one.sha256}\n"
        for one in packages
        if one.sha256
    )
