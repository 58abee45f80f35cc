"""Names Debian and Python packages exactly, as a build that is made again gets them. Pure."""

from __future__ import annotations

import re

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
        return re.sub(r"[-_.]+", "-", self.name).lower()
