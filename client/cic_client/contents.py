"""Compare an image file's bill of materials with what is in its squashfs, as `unsquashfs` shows it.

Nothing is unpacked. The bill names nothing that is not there, and every package that dpkg lists.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cic_client.errors import ClientError

PROGRAM = "unsquashfs"
MAX_LIST_BYTES = 512 * 1024**2
MAX_STATUS_BYTES = 256 * 1024**2
TIMEOUT_S = 1800
STATUS = "var/lib/dpkg/status"
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*\Z")
_DEBIAN = re.compile(r"pkg:deb/[^/]+/([^/@]+)@([^?]+)\?arch=([a-z0-9-]+)\Z")
_FOLDER = re.compile(r"installed as (/.*?)(?:; its RECORD has the SHA-256 [0-9a-f]{64})?\Z")
_PREFIX = re.compile(r"(?:.*; )?prefix (/[^;]*); variants ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims:
    """What a bill of materials says is in an image."""

    debian: frozenset[tuple[str, str, str]]
    """Names, versions and architectures."""
    folders: frozenset[str]
    """Where Python packages and those of Spack are installed."""

    @property
    def count(self) -> int:
        return len(self.debian) + len(self.folders)


def claims_of(bill: Mapping[str, Any]) -> Claims:
    """Return what a bill of materials says is in an image."""
    debian, folders = set(), set()
    for package in bill.get("packages") or ():
        comment = str(package.get("comment", ""))
        for reference in package.get("externalRefs") or ():
            if found := _DEBIAN.match(str(reference.get("referenceLocator", ""))):
                name, version = map(urllib.parse.unquote, found.group(1, 2))
                debian.add((name, version, found[3]))
        if found := _FOLDER.match(comment) or _PREFIX.match(comment):
            folders.add(found[1])
    return Claims(debian=frozenset(debian), folders=frozenset(folders))


def is_comparable() -> bool:
    """Return whether this machine has what shows a squashfs."""
    return shutil.which(PROGRAM) is not None


def difference(path: Path, offset: int, claims: Claims) -> str:
    """Return in what an image and its bill of materials differ first; empty if they do not.

    `offset` is where the squashfs begins in the file. Raises `ClientError` if it cannot be read.
    """
    there = _folders_among(_listed(path, offset), claims.folders)
    if missing := sorted(claims.folders - there):
        return f"its bill of materials names {missing[0]}, which is not in it"
    status = _shown(path, offset, ["-cat"], [STATUS], MAX_STATUS_BYTES, may_be_missing=True)
    installed = set(_installed(status.decode("utf-8", "replace")))
    if not status:  # an image without dpkg, which may tell of its packages in another way
        return ""
    for one in sorted(claims.debian - installed):
        return f"its bill of materials names {' '.join(one)}, which is not installed in it"
    for one in sorted(installed - claims.debian):
        return f"{' '.join(one)} is installed in it, which its bill of materials does not name"
    return ""


def _folders_among(listed: Iterator[bytes], wanted: frozenset[str]) -> set[str]:
    return {path for line in listed if (path := line.decode("utf-8", "replace")) in wanted}


def _listed(path: Path, offset: int) -> Iterator[bytes]:
    """Yield the paths in a squashfs, from `/` on."""
    listed = _shown(path, offset, ["-l", "-d", ""], [], MAX_LIST_BYTES)
    return iter(listed.split(b"\n"))


def _shown(
    path: Path,
    offset: int,
    options: list[str],
    files: list[str],
    max_bytes: int,
    *,
    may_be_missing: bool = False,
) -> bytes:
    command = [PROGRAM, "-offset", str(offset), *options, str(path.resolve()), *files]
    with tempfile.TemporaryFile() as output:
        try:
            ended = subprocess.run(
                command, stdout=output, stderr=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ClientError(f"{path} cannot be looked into: {error}") from None
        if ended.returncode and not may_be_missing:
            raise ClientError(f"{path} cannot be looked into: {PROGRAM} fails")
        output.seek(0)
        content = output.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ClientError(f"{path} cannot be looked into: it lists more than {max_bytes} bytes")
    return content


def _installed(status: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, version and architecture of each package that is installed."""
    for stanza in re.split(r"\n[ \t]*\n", status):
        fields: dict[str, str] = {}
        for line in stanza.strip("\n").splitlines():
            name, colon, value = line.partition(":")
            if colon and not line[:1].isspace():
                fields.setdefault(name, value.strip())
        words = fields.get("Status", "install ok installed").split()
        package, version = fields.get("Package", ""), fields.get("Version", "")
        if words[-1:] == ["installed"] and _NAME.match(package) and version:
            yield package, version, fields.get("Architecture", "")
