"""Show each user the stored images that the user may see, and no others.

Images of the site's registry are everybody's; private ones are their owners', and of those with
whom they are shared. Whatever hands out an image, its record or its texts asks here.
"""

from __future__ import annotations

import dataclasses

from sqlalchemy.engine import Engine

from image_builder.plan.image_name import is_private_name
from image_builder.store import spellings
from image_builder.store.image_store import Images
from image_builder.store.record import ImageRecord, identity_digest
from service.db import shares


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sight:
    """The images of one service as one user sees them."""

    engine: Engine
    images: Images
    user_id: int

    def names(self) -> dict[str, ImageRecord]:
        """Return every name that the user may see, with what it means at present."""
        own = shares.private_filenames(self.engine, self.user_id)
        return {
            name: record
            for name, record in self.images.names().items()
            if not is_private_name(name) or name in own
        }

    def by_name(self, filename: str) -> ImageRecord | None:
        """Return what a name means; None for one that is unknown, or not for this user."""
        return self.images.by_name(filename) if self.may_see(filename) else None

    def by_sha256(self, sha256: str) -> ImageRecord | None:
        """Return the record of a stored SIF that the user may see, or None."""
        record = self.images.by_sha256(sha256)
        if record is None:
            return None
        is_public = record.filename is not None and not is_private_name(record.filename)
        if shares.may_see_sif(self.engine, self.user_id, sha256, unknown=is_public):
            return record
        return None

    def may_see(self, filename: str) -> bool:
        """Return whether a name is none of a private image, or of one that the user may see."""
        if not is_private_name(filename):
            return True
        known = spellings.of_filename(filename)
        return shares.may_see_filename(self.engine, self.user_id, (filename, *known))

    def document(self, identity: str, name: str) -> str | None:
        """Return a text about an identity's image, or None if there is none for this user."""
        may = self.may_see_identity(identity)
        return self.images.document(_whole(identity), name) if may else None

    def may_see_identity(self, identity: str) -> bool:
        """Return whether the user may see an image of this identity."""
        identity = _whole(identity)
        record = self.images.by_identity(identity)
        is_public = (
            record is not None
            and record.filename is not None
            and not is_private_name(record.filename)
        )
        return shares.may_see_identity(self.engine, self.user_id, identity, unknown=is_public)


def _whole(identity: str) -> str:
    return f"sha256:{identity_digest(identity)}"
