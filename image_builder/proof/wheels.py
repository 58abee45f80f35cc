"""Reads what pip wrote down of a Python package that it installed. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re

from packaging.utils import canonicalize_name

from image_builder.proof.texts import header_fields, plain

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9])?\Z")
_VERSION = re.compile(r"[A-Za-z0-9.+!_-]{1,200}\Z")


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Wheel:
    """Describes an installed Python package; `folder` is its `.dist-info` in the image.

    `record_sha256` is the digest of its RECORD, which lists its files with theirs.
    """

    name: str
    version: str
    folder: str
    record_sha256: str | None = None
    licence: str = ""
    homepage: str = ""
    origin: str = ""
    """The address that it was installed from, if that was not an index."""

    @property
    def project(self) -> str:
        """Return the name as package indexes normalise it."""
        return canonicalize_name(self.name)


def wheel(folder: str, metadata: bytes, record: bytes | None, origin: bytes | None) -> Wheel:
    """Return what the files of a `.dist-info` folder say.

    What is no name or version is replaced by what the folder's own name says.
    """
    fields = header_fields(metadata.decode("utf-8", "replace"))
    stem_name, _, stem_version = folder.rpartition("/")[2].removesuffix(".dist-info").partition("-")
    name, version = fields.get("Name", ""), fields.get("Version", "")
    return Wheel(
        name=name if _NAME.match(name) else plain(stem_name) or "unnamed",
        version=version if _VERSION.match(version) else plain(stem_version),
        folder=folder,
        record_sha256=None if record is None else hashlib.sha256(record).hexdigest(),
        licence=plain(fields.get("License-Expression") or fields.get("License", "")),
        homepage=plain(fields.get("Home-page", "")),
        origin=_origin(origin),
    )


def _origin(text: bytes | None) -> str:
    """Return the address in `direct_url.json`, with the commit for a repository."""
    if text is None:
        return ""
    try:
        said = json.loads(text)
        url, repository = str(said["url"]), said.get("vcs_info")
        return plain(
            f"{repository['vcs']}+{url}@{repository['commit_id']}" if repository else url, most=1000
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
