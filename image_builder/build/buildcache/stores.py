"""Keeps built packages for all build hosts, in a folder or in a repository of an OCI registry.

A store only keeps: whether an entry is sound, and who signed it, is for `sync` to check.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from image_builder.build.buildcache.mirror import MirrorTool, PackageEntry
from image_builder.docker.label_names import SIGNATURE, TITLE
from image_builder.errors import ServiceError
from image_builder.host import files
from image_builder.host.cancellation import CancelToken
from image_builder.settings import ORAS, BuildSettings, RegistrySettings
from image_builder.store.image_store import open_repository
from image_builder.store.oci_client import MANIFEST, Manifest, OciRepository, RegistryUnavailable

CONFIG = "application/vnd.cic.package.v1+json"
FILE_LAYER = "application/octet-stream"
READERS = 4
CHUNK_BYTES = 1024**2
MAX_FILE_BYTES = 64 * 1024**3
"""Of one file of a package: CUDA, the largest that Spack knows, has less than 10 GB."""

_IN_MOUNTS = "in cache mounts of the builder, whose garbage collection removes idle ones (dockerd: builder.gc)"
_MIRROR_PATH = re.compile(r"(?:build_cache|blobs|v3)(?:/[A-Za-z0-9_+@=,-][A-Za-z0-9_.+@=,-]*)+")


class BuildCacheStore(Protocol):
    """Keeps the built packages of one cache.

    Raises `Unavailable`, `ProcessFailed` or `OSError` when it cannot be reached.
    """

    def available(self, wanted: Collection[str]) -> set[str]:
        """Return which of these packages the store lists; some of them may be broken."""

    def pull(self, nodes: Collection[str]) -> Path:
        """Return a mirror with these packages, of those that `available` found last."""

    def signature(self, entry: PackageEntry) -> str | None:
        """Return the signature of an entry of the last pull."""

    def publish(self, mirror: Path, entries: Mapping[PackageEntry, str | None]) -> None:
        """Publish entries of a mirror with their signatures, each in one step.

        What is there already stays.
        """

    def quarantine(self, nodes: Collection[str]) -> None:
        """Let packages of the last pull be published anew."""


def described(build: BuildSettings, registry: RegistrySettings) -> str:
    """Return where builds share packages, and what removes them there.

    Raises `ServiceError` when that place cannot be reached.
    """
    if build.spack_cache == "none":
        return "builds share no packages (spack_cache)"
    if build.spack_cache == "mount":
        return _IN_MOUNTS
    if build.spack_cache.startswith(ORAS):
        open_repository(build.spack_cache, build, registry).manifest("cic-spack")
    elif not _may_be_made(Path(build.spack_cache)):
        raise ServiceError(
            f"Nothing can be written to {build.spack_cache}, so no packages are shared there.",
            hint="Let the service's user write there, or name another place in spack_cache.",
        )
    return f"in {build.spack_cache}, where the service removes nothing, and {_IN_MOUNTS}"


def _may_be_made(folder: Path) -> bool:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


class FolderStore:
    """Keeps packages in a folder laid out as a cache mount, with signatures next to the mirror.

    `packages.py` describes the layout. Signatures are
    `signatures/<package>-<sha256 of the file that names it>`.
    """

    def __init__(self, folder: Path, tool: MirrorTool) -> None:
        self._folder, self._tool = folder, tool

    def available(self, wanted: Collection[str]) -> set[str]:
        return set(self._tool.entries(self._folder / "shared", wanted))

    def pull(self, nodes: Collection[str]) -> Path:
        return self._folder / "shared"

    def signature(self, entry: PackageEntry) -> str | None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return self._signature_file(entry).read_text("ascii")
        return None

    def publish(self, mirror: Path, entries: Mapping[PackageEntry, str | None]) -> None:
        for entry, signature in entries.items():
            if signature is not None:
                path = self._signature_file(entry)
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_whole(path, signature)
        self._tool.copy(mirror, self._folder, [entry.node for entry in entries])

    def quarantine(self, nodes: Collection[str]) -> None:
        self._tool.quarantine(self._folder, nodes)

    def _signature_file(self, entry: PackageEntry) -> Path:
        return self._folder / "signatures" / f"{entry.node}-{entry.spec_sha256}"


class RegistryStore:
    """Keeps packages as artifacts of one repository, with a layer for each file.

    The tag is `<cache>.<package>`. It moves in one step, and its blobs are there before. Two hosts
    that publish the same package at the same moment both publish a complete one, and the later one
    is found. What is quarantined gets a tag of its own, `aside.…`; nothing is deleted here.
    """

    def __init__(
        self, repository: OciRepository, cache: str, *, scratch: Path, cancel: CancelToken
    ) -> None:
        self._repository, self._cache, self._cancel = repository, cache, cancel
        self._mirror = scratch / "offered"
        self._held: dict[str, Manifest] = {}
        self._refused: set[str] = set()

    def available(self, wanted: Collection[str]) -> set[str]:
        nodes = sorted(wanted)
        with ThreadPoolExecutor(READERS) as pool:
            manifests = list(pool.map(self._manifest, nodes))
        self._held = {
            node: found for node, found in zip(nodes, manifests, strict=True) if found is not None
        }
        return set(self._held)

    def pull(self, nodes: Collection[str]) -> Path:
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(self._download, nodes))
        return self._mirror

    def signature(self, entry: PackageEntry) -> str | None:
        return self._held[entry.node].annotations.get(SIGNATURE)

    def publish(self, mirror: Path, entries: Mapping[PackageEntry, str | None]) -> None:
        for entry, signature in entries.items():
            self._cancel.check()
            there = self._repository.manifest(self._tag(entry.node))
            if there is None or there.digest in self._refused:
                self._upload(mirror, entry, signature)

    def quarantine(self, nodes: Collection[str]) -> None:
        for node in nodes:
            manifest = self._held[node]
            self._refused.add(manifest.digest)
            with contextlib.suppress(RegistryUnavailable):  # a blob may be gone
                self._repository.put_manifest(
                    f"aside.{self._tag(node)}.{manifest.digest[-12:]}", manifest.content
                )

    def _upload(self, mirror: Path, entry: PackageEntry, signature: str | None) -> None:
        layers = [
            {
                "mediaType": FILE_LAYER,
                "annotations": {TITLE: path},
                **self._repository.put_file(mirror / path, sha256),
            }
            for path, sha256 in (*entry.files, (entry.spec_file, entry.spec_sha256))
        ]
        self._repository.put_manifest(
            self._tag(entry.node),
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "layers": layers,
                "config": {"mediaType": CONFIG, **self._repository.put_blob(b"{}")},
                "annotations": {SIGNATURE: signature} if signature is not None else {},
            },
        )

    def _manifest(self, node: str) -> Manifest | None:
        self._cancel.check()
        return self._repository.manifest(self._tag(node))

    def _download(self, node: str) -> None:
        """Put those files of an available package into the mirror that match their digests."""
        for path, layer in _files(self._held[node]).items():
            with contextlib.suppress(FileNotFoundError, _Differs):
                self._download_file(self._mirror / path, layer)

    def _download_file(self, target: Path, layer: Mapping[str, Any]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target, durable=False) as fresh:
            self._fetch(layer["digest"], layer["size"], fresh)

    def _fetch(self, digest: str, size_bytes: int, target: Path) -> None:
        """Write a blob to a new file. Raises `_Differs`, at its first byte too many."""
        hashed, left = hashlib.sha256(), size_bytes
        with self._repository.blob(digest) as body, target.open("xb") as file:
            while chunk := body.read(CHUNK_BYTES):
                self._cancel.check()
                left -= len(chunk)
                if left < 0:
                    raise _Differs
                hashed.update(chunk)
                file.write(chunk)
        if f"sha256:{hashed.hexdigest()}" != digest:
            raise _Differs

    def _tag(self, node: str) -> str:
        return f"{self._cache}.{node}"


class _Differs(Exception):
    """The content of a file does not match its digest, or is longer than its manifest says."""


def _files(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """Return the paths in a mirror that a manifest names, with the descriptors of their files.

    What cannot be such a path, or is too large for a file of a package, is left out.
    """
    return {
        path: layer
        for path, layer in manifest.layers_by_title.items()
        if _MIRROR_PATH.fullmatch(path) and layer["size"] <= MAX_FILE_BYTES
    }
