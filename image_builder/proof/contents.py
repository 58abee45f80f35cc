"""Reads from outside what is installed in an image: Debian packages, wheels, and what Spack built.

The daemon hands out the files of a container that is never started, and none of the image's programs
runs. Of the stream, only a few kinds of files are kept, each of a bounded size.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Collection, Mapping

from image_builder.errors import CicError, ErrorCode, LimitReached
from image_builder.host.cancellation import CancelToken
from image_builder.proof.debian import DebianPackage, TooManyPackages, installed_packages
from image_builder.proof.debian_licences import LicencesSeen
from image_builder.proof.licences import Licence
from image_builder.proof.texts import header_fields, plain
from image_builder.proof.wheels import Wheel, wheel
from image_builder.sif import docker_export, tar_filter

TIMEOUT_S = 1800.0
MAX_FILE_BYTES = 16 * 1024**2
MAX_STATUS_BYTES = 64 * 1024**2
MAX_KEPT_BYTES = 256 * 1024**2
MAX_WHEELS = 20_000

STATUS = b"var/lib/dpkg/status"
STATUS_FOLDER = b"var/lib/dpkg/status.d"
_SYSTEM = (b"etc/os-release", b"usr/lib/os-release")
_LISTS, _LIST = b"var/lib/dpkg/info/", b".list"
_LISTED_WHEEL = re.compile(rb"^/(.{1,1000}\.dist-info)/METADATA$", re.MULTILINE)
_WHEEL_FILES = (b"METADATA", b"RECORD", b"direct_url.json")
_OWN_DOCUMENT = b".spack/sbom/spdx-2.3.json"
_STAGE = b"spack-stage-"
SHORTEST_HASH = 7


class UnreadableContents(CicError):
    """What is installed in the image cannot be told; the message says why."""

    code = ErrorCode.TARGET_MISMATCH


@dataclasses.dataclass(kw_only=True)
class SpackPrefix:
    """Holds where a package of Spack is installed, and what Spack's own files say of its source."""

    path: str
    document: bytes | None = None
    recipe: bytes | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """Says what is installed in an image.

    `prefixes` are by the hash of their package in the lockfile. `wheel_owners` holds the Debian
    package that brought a wheel, by the wheel's folder.
    """

    system: str
    """The `ID` of the distribution, such as `debian`."""
    packages: tuple[DebianPackage, ...]
    wheels: tuple[Wheel, ...]
    prefixes: Mapping[str, SpackPrefix]
    wheel_owners: Mapping[str, str]
    licences: Mapping[str, Licence] = dataclasses.field(default_factory=dict)
    """What Debian packages state in the form for machines, by their names."""


def read_contents(image: str, hashes: Collection[str], cancel: CancelToken) -> Contents:
    """Return what is installed in an image; `hashes` are those of the lockfile's nodes.

    Raises `UnreadableContents`, `Unavailable` for a daemon that does not answer, `LimitReached`, or
    `Cancelled`.
    """
    try:
        with docker_export.exported_files(image, timeout_s=TIMEOUT_S) as descriptor:
            reader = ContentsReader(hashes)
            reader.read(descriptor, cancel)
            return reader.contents()
    except (tar_filter.UnsupportedArchive, tar_filter.CorruptArchive, OSError) as error:
        raise UnreadableContents(f"The image's files cannot be read: {error}.") from error


class ContentsReader:
    """Keeps the few files of a stream that tell what is installed.

    It can look at a stream that somebody else reads, member by member.
    """

    def __init__(self, hashes: Collection[str]) -> None:
        self._hashes: dict[bytes, list[str]] = {}
        for each in hashes:
            self._hashes.setdefault(each[:SHORTEST_HASH].encode(), []).append(each)
        self._prefixes: dict[str, SpackPrefix] = {}
        self._hash_of_prefix: dict[bytes, str] = {}
        self._status: list[bytes] = []
        self._system = ""
        self._wheels: dict[bytes, dict[bytes, bytes]] = {}
        self._owners: dict[str, str] = {}
        self._licences = LicencesSeen()
        self._kept_bytes = 0

    def read(self, descriptor: int, cancel: CancelToken) -> None:
        """Read a whole archive of an image's files."""
        window, deadline = tar_filter.Window(descriptor, None), time.monotonic() + TIMEOUT_S
        while (member := tar_filter.next_member(window)) is not None:
            cancel.check()
            if time.monotonic() > deadline:
                raise LimitReached(
                    f"The image's files took longer than {TIMEOUT_S:.0f} s to read.",
                    code=ErrorCode.BUILD_TIMEOUT,
                )
            self.see(member, window)
            window.drop(member.extent + member.body_bytes)

    def see(self, member: tar_filter.Member, window: tar_filter.Window) -> None:
        """Look at the member at the window's position, which stays there.

        Raises `UnreadableContents`, and `CorruptArchive` for a stream that ends too early.
        """
        if member.kind == ord("5"):
            self._see_folder(member.name)
        elif member.kind == ord("2"):
            self._licences.link(member.name, member.link)
        elif member.kind in b"0\0" and self._licences.wants(member.name, member.size):
            self._licences.take(member.name, _body(member, window))
        elif member.kind in b"0\0" and self._is_wanted(member.name):
            if member.size > (MAX_STATUS_BYTES if member.name == STATUS else MAX_FILE_BYTES):
                raise UnreadableContents(
                    f"{tar_filter.printable(member.name)} is larger than any that is known."
                )
            self._take(member.name, _body(member, window))
        elif member.kind == ord("1") and member.name.endswith(_WHEEL_FILES):
            self._see_link(member)

    def _see_link(self, member: tar_filter.Member) -> None:
        """Look at a hard link to a wheel's file that came before: installers make them."""
        folder, _, last = tar_filter.canonical(member.link).rpartition(b"/")
        body = self._wheels.get(folder, {}).get(last)
        if body is not None and self._is_wanted(member.name):
            self._take(member.name, body)

    def contents(self) -> Contents:
        """Return what was read. Raises `UnreadableContents`."""
        wheels = (
            wheel(
                f"/{folder.decode('utf-8', 'replace')}",
                files[b"METADATA"],
                files.get(b"RECORD"),
                files.get(b"direct_url.json"),
            )
            for folder, files in self._wheels.items()
            if b"METADATA" in files
        )
        status = b"\n\n".join(self._status).decode("utf-8", "replace")
        try:
            packages = tuple(installed_packages(status))
        except TooManyPackages as error:
            raise UnreadableContents(f"The image's packages cannot be told: {error}.") from error
        return Contents(
            system=self._system,
            packages=packages,
            wheels=tuple(sorted(wheels, key=lambda one: one.folder)),
            prefixes=self._prefixes,
            wheel_owners=self._owners,
            licences=self._licences.by_package(),
        )

    def _see_folder(self, name: bytes) -> None:
        """Remember a folder whose name ends in the hash of one of the lockfile's nodes."""
        last = name.rpartition(b"/")[2]
        token = last.rpartition(b"-")[2]
        candidates = self._hashes.get(token[:SHORTEST_HASH])
        if candidates is None or last.startswith(_STAGE):
            return
        for candidate in candidates:
            if candidate.encode().startswith(token) and candidate not in self._prefixes:
                self._prefixes[candidate] = SpackPrefix(path=f"/{name.decode('utf-8', 'replace')}")
                self._hash_of_prefix[name] = candidate

    def _is_wanted(self, name: bytes) -> bool:
        if name.endswith(_WHEEL_FILES):
            return name.rpartition(b"/")[0].endswith(b".dist-info")
        if name.startswith(b"var/lib/dpkg/"):
            folder = name.rpartition(b"/")[0]
            return (
                name == STATUS
                or (folder == STATUS_FOLDER and not name.endswith(b".md5sums"))
                or (name.startswith(_LISTS) and name.endswith(_LIST))
            )
        return name in _SYSTEM or self._spack_file(name) is not None

    def _spack_file(self, name: bytes) -> tuple[SpackPrefix, str] | None:
        """Return whose package's own document or recipe a file is, and which of both."""
        prefix, within, rest = name.partition(b"/.spack/")
        if not within or prefix not in self._hash_of_prefix:
            return None
        known = self._prefixes[self._hash_of_prefix[prefix]]
        if b".spack/" + rest == _OWN_DOCUMENT:
            return known, "document"
        if rest.startswith(b"repos/") and rest.endswith(b"/package.py"):
            package = rest.split(b"/")[-2].replace(b"_", b"-").lstrip(b"-")
            if prefix.rpartition(b"/")[2].startswith(package + b"-"):
                return known, "recipe"
        return None

    def _take(self, name: bytes, body: bytes) -> None:
        folder, _, last = name.rpartition(b"/")
        if name == STATUS or folder == STATUS_FOLDER:
            self._keep(body)
            self._status.append(body)
        elif name in _SYSTEM:
            self._system = _system_of(body) or self._system
        elif name.startswith(_LISTS):
            package = last[: -len(_LIST)].partition(b":")[0].decode("utf-8", "replace")
            for listed in _LISTED_WHEEL.findall(body):
                self._owners[f"/{listed.decode('utf-8', 'replace')}"] = package
        elif folder.endswith(b".dist-info") and last in _WHEEL_FILES:
            if folder not in self._wheels and len(self._wheels) >= MAX_WHEELS:
                raise UnreadableContents(f"The image has more than {MAX_WHEELS} Python packages.")
            # Of its METADATA only the head is read; the rest is a text for people.
            body = body.partition(b"\n\n")[0] if last == b"METADATA" else body
            self._keep(body)
            self._wheels.setdefault(folder, {})[last] = body
        elif (found := self._spack_file(name)) is not None:
            self._keep(body)
            prefix, kind = found
            setattr(prefix, kind, body)

    def _keep(self, body: bytes) -> None:
        self._kept_bytes += len(body)
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise UnreadableContents("The image's lists of packages are larger than any known.")


def _body(member: tar_filter.Member, window: tar_filter.Window) -> bytes:
    """Return a file's content. Raises `CorruptArchive` for a stream that ends too early."""
    if not window.need(member.extent + member.body_bytes):
        raise tar_filter.CorruptArchive("the stream ends in the middle of a file")
    return window.peek(member.size, member.extent)


def _system_of(os_release: bytes) -> str:
    text = os_release[:65536].decode("utf-8", "replace").replace("\n\n", "\n").replace("=", ":")
    name = header_fields(text).get("ID", "").strip("\"'")
    return plain(name) if re.fullmatch(r"[a-z0-9._-]{1,40}", name) else ""
