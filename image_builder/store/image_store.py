"""Defines what stores finished images: a folder, local or shared, or an OCI registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from image_builder.docker.registry import auth_config
from image_builder.settings import ORAS, BuildSettings, RegistrySettings
from image_builder.store.folder import ImageStore
from image_builder.store.oci_client import OciRepository
from image_builder.store.record import ImageRecord
from image_builder.store.registry import PutBeside, RegistryImages


class Images(Protocol):
    """Stores finished images: SIFs, records of identities, names that point at them, and texts.

    A SIF is whole before anything points at it, and a name moves in one step. One contract suite of
    tests checks every implementation for what these docstrings say.
    """

    def using(self, identity: str) -> AbstractContextManager[None]:
        """Keep every image of an identity from removal on this machine until the block ends."""

    def temporary_path(self) -> AbstractContextManager[Path]:
        """Yield a path for a SIF to be written; what is not published is removed at the end."""

    def publish(
        self, temporary: Path, record: ImageRecord, *, sha256: str | None = None
    ) -> ImageRecord:
        """Store a whole SIF under the record's name and identity; return the full record."""

    def point(self, record: ImageRecord) -> ImageRecord:
        """Let the record's name and identity point at a SIF that is stored already.

        Raises `LookupError` if it is not.
        """

    def naming(self, image_id: str) -> AbstractContextManager[bool]:
        """Yield whether the block alone, on this machine, gives this name to Docker images.

        False says that another one does at present.
        """

    def take_name(self, record: ImageRecord) -> bool:
        """Let the record's identity own its `image_id` among Docker images.

        Returns False, and changes nothing, if the name was requested later for another identity.
        """

    def record(self, record: ImageRecord) -> ImageRecord:
        """Store the record of an image without a SIF; the identity keeps a SIF that it has."""

    def keep_documents(self, identity: str, documents: Mapping[str, str | None]) -> None:
        """Store texts about an identity's image; None removes the text of an earlier image."""

    def documents(self, identity: str) -> tuple[str, ...]:
        """Return the names of the texts about an identity's image."""

    def document(self, identity: str, name: str) -> str | None:
        """Return one of the texts about an identity's image, or None if it has no such text."""

    def by_name(self, filename: str) -> ImageRecord | None:
        """Return what a name means at present; None if it is unknown or cannot be a name."""

    def by_sha256(self, sha256: str) -> ImageRecord | None:
        """Return the record that a stored SIF was stored with, or None."""

    def by_identity(self, identity: str) -> ImageRecord | None:
        """Return the newest image of an identity, or None."""

    def images(self) -> list[ImageRecord]:
        """Return the record of every stored SIF, newest first.

        Of the details, a list has the labels alone.
        """

    def names(self) -> dict[str, ImageRecord]:
        """Return every name with what it means at present.

        Of the details, a list has the labels alone.
        """

    def identities(self) -> dict[str, float]:
        """Return every identity that was used and not forgotten, with the time of its last use.

        Times are in seconds since 1970.
        """

    def is_known(self, identity: str) -> bool:
        """Return whether the store has anything of an identity."""

    def last_use(self, record: ImageRecord) -> float:
        """Return when a stored SIF was last made, named or handed out, in seconds since 1970.

        In a folder, opening it counts, too.
        """

    def path_of(self, sha256: str) -> Path | None:
        """Return the path of the SIF, stored or not; None if SIFs are no files of this machine."""

    def address_of(self, filename: str) -> str | None:
        """Return what `singularity pull` takes to fetch the image of this name, or None."""

    def opened(self, sha256: str) -> AbstractContextManager[BinaryIO]:
        """Yield a stored SIF, open for reading from any byte on; it is kept meanwhile.

        Raises `FileNotFoundError`.
        """

    def pin(self, digest: str) -> None:
        """Keep a SIF, or the images of an identity, from removal until it is unpinned."""

    def unpin(self, digest: str) -> None:
        """Let clean-up remove a SIF, or the images of an identity, again."""

    def is_pinned(self, digest: str) -> bool:
        """Return whether a SIF, or an identity, is pinned."""

    def is_kept(self, record: ImageRecord) -> bool:
        """Return whether a SIF or its identity is pinned, or in use on this machine now."""

    def remove(self, sha256: str, *, unless: Callable[[], bool] = ...) -> bool:
        """Remove a SIF with all its pointers, and return whether it did.

        It stays while it or its identity is pinned or in use, or if `unless` returns True. `unless`
        is called when no further use of the SIF can begin.
        """

    def unused(self, identity: str) -> AbstractContextManager[bool]:
        """Yield whether an identity is free (not in use, not pinned); no use begins meanwhile."""

    def forget(self, identity: str) -> bool:
        """Remove record and texts of an identity without a SIF; return whether it did.

        They stay while the identity is in use.
        """

    def texts_bytes(self, identity: str) -> int:
        """Return how many bytes `forget` would free."""

    def leftovers(self) -> dict[Path, int]:
        """Return what killed writers left behind on this machine, with sizes."""

    def sweep(self) -> int:
        """Remove what killed writers left behind, and return how many bytes that were."""


def open_images(
    build: BuildSettings, registry: RegistrySettings, *, beside: PutBeside | None = None
) -> Images:
    """Open the store of this site's finished images; `beside` proves SIFs in a registry."""
    folder = build.tmp_folder / "store"
    if not build.storage.startswith(ORAS):
        return ImageStore(Path(build.storage) if build.storage.startswith("/") else folder)
    return RegistryImages(open_repository(build.storage, build, registry), folder, beside=beside)


def open_repository(
    address: str, build: BuildSettings, registry: RegistrySettings
) -> OciRepository:
    """Open the repository `oras://host/name`, with the credentials of its host."""
    host, _, name = address.removeprefix(ORAS).partition("/")
    auth = auth_config(f"{host}/{name}", registry)
    credentials = None if auth is None else (auth["username"], auth["password"])
    return OciRepository(host, name, credentials=credentials, ca_bundle=build.ca_bundle)
