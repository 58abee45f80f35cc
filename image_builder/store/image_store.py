"""The seam between finished images and where they lie: a folder, local or shared, or an OCI
registry.
"""

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
from image_builder.store.registry import RegistryImages


class Images(Protocol):
    """Finished images: SIFs by their sha256, records of identities, names that point at them, and
    texts about them.

    A SIF is whole before anything points at it, and a name moves in one step. One contract suite of
    tests holds every implementation to what is said here.
    """

    def using(self, identity: str) -> AbstractContextManager[None]:
        """Make or hand out images of an identity: until the block ends, none of them is removed
        from this machine.
        """

    def temporary_path(self) -> AbstractContextManager[Path]:
        """A path for a SIF to be written. What was not published is removed at the end of the
        block.
        """

    def publish(
        self, temporary: Path, record: ImageRecord, *, sha256: str | None = None
    ) -> ImageRecord:
        """Store a whole SIF and let the record's name and identity point at it; returns the full
        record.
        """

    def point(self, record: ImageRecord) -> ImageRecord:
        """Let the record's name and identity point at a SIF that is stored already. `LookupError`
        if it is not.
        """

    def record(self, record: ImageRecord) -> ImageRecord:
        """Keep the record of an image without a SIF. A SIF that the identity has already stays
        known.
        """

    def keep_documents(self, identity: str, documents: Mapping[str, str]) -> None:
        """Keep texts about an identity's image."""

    def documents(self, identity: str) -> tuple[str, ...]:
        """The names of those texts."""

    def document(self, identity: str, name: str) -> str | None:
        """One of them."""

    def by_name(self, filename: str) -> ImageRecord | None:
        """What a name means at present. None for an unknown name, and for one that cannot be a
        name.
        """

    def by_sha256(self, sha256: str) -> ImageRecord | None:
        """The record that a stored SIF came with."""

    def by_identity(self, identity: str) -> ImageRecord | None:
        """The newest image of an identity."""

    def images(self) -> list[ImageRecord]:
        """The record of every stored SIF, newest first. Of its details, a list has the labels
        alone.
        """

    def names(self) -> dict[str, ImageRecord]:
        """Every name with what it means at present. Of the details, a list has the labels alone."""

    def identities(self) -> dict[str, float]:
        """Every identity that was ever worked with and not forgotten, with when it was last used,
        since 1970.
        """

    def is_known(self, identity: str) -> bool:
        """Whether anything was made of an identity."""

    def last_use(self, record: ImageRecord) -> float:
        """When a stored SIF was last made, named, handed out or, in a folder, opened, in seconds
        since 1970.
        """

    def path_of(self, sha256: str) -> Path | None:
        """Where the SIF lies as a file, stored or not; None where SIFs are no files of this
        machine.
        """

    def address_of(self, filename: str) -> str | None:
        """What `singularity pull` takes to fetch the image of this name; None where there is no
        such place.
        """

    def opened(self, sha256: str) -> AbstractContextManager[BinaryIO]:
        """A stored SIF, open for reading from any byte on; it stays meanwhile. Raises
        `FileNotFoundError`.
        """

    def pin(self, digest: str) -> None:
        """Keep a SIF, or the images of an identity, until that is unpinned."""

    def unpin(self, digest: str) -> None:
        """No longer."""

    def is_pinned(self, digest: str) -> bool:
        """Whether that is so."""

    def is_kept(self, record: ImageRecord) -> bool:
        """Whether a SIF or its identity is pinned, or in use on this machine at this moment."""

    def remove(self, sha256: str, *, unless: Callable[[], bool] = ...) -> bool:
        """Remove a SIF and whatever points at it. False, and nothing is done, while it is pinned or
        in use.

        Nor is anything done when `unless` says so, which is asked when nobody can begin to use the
        SIF any more.
        """

    def unused(self, identity: str) -> AbstractContextManager[bool]:
        """Whether nobody uses an identity and it is not pinned; nobody begins to until the block
        ends.
        """

    def forget(self, identity: str) -> bool:
        """Remove record and texts of an identity without a SIF. False, and nothing is done, while
        it is in use.
        """

    def texts_bytes(self, identity: str) -> int:
        """How much `forget` would free."""

    def leftovers(self) -> dict[Path, int]:
        """What writers left on this machine that ended without a word, with sizes."""

    def sweep(self) -> int:
        """Remove those leftovers; returns how many bytes that were."""


def open_images(build: BuildSettings, registry: RegistrySettings) -> Images:
    """The finished images of this site."""
    folder = build.tmp_folder / "store"
    if not build.storage.startswith(ORAS):
        return ImageStore(Path(build.storage) if build.storage.startswith("/") else folder)
    return RegistryImages(open_repository(build.storage, build, registry), folder)


def open_repository(
    address: str, build: BuildSettings, registry: RegistrySettings
) -> OciRepository:
    """The repository `oras://host/name`, with the credentials of its host."""
    host, _, name = address.removeprefix(ORAS).partition("/")
    auth = auth_config(f"{host}/{name}", registry)
    credentials = None if auth is None else (auth["username"], auth["password"])
    return OciRepository(host, name, credentials=credentials, ca_bundle=build.ca_bundle)
