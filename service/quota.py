"""Limit how much one user's builds may take."""

from __future__ import annotations

from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.errors import LimitReached
from image_builder.store.image_store import Images
from image_builder.store.record import IMAGE_BYTES
from service.db import builds
from service.db.builds import Limits


def limits_of(engine: Engine, settings: Settings, images: Images, user_id: int) -> Limits:
    """Return a user's limits, with what is there of that user's images."""
    service = settings.service
    gone: frozenset[str] = frozenset()
    image_bytes: dict[str, int] = {}
    if service.max_stored_bytes_per_user is not None:
        for identity in builds.stored_images_of(engine, user_id):
            image_bytes[identity] = _image_bytes(images, identity)
        gone = frozenset(
            sha256
            for sha256 in builds.stored_sifs_of(engine, user_id)
            if images.by_sha256(sha256) is None
        )
    return Limits(
        queued_builds=service.max_queued_builds_per_user,
        stored_bytes=service.max_stored_bytes_per_user,
        removed_sifs=gone,
        image_bytes=image_bytes,
    )


def _image_bytes(images: Images, identity: str) -> int:
    """Return the size of an identity's image in Docker, which is known until clean-up forgets it."""
    record = images.by_identity(identity)
    size_bytes = record.details.get(IMAGE_BYTES) if record is not None else None
    return size_bytes if isinstance(size_bytes, int) else 0


def require_room_for_run(engine: Engine, settings: Settings, images: Images, run_id: str) -> None:
    """Raise `LimitReached` when no user who waits for a run has room for what it makes.

    Requests that were accepted at once, while there was room for one of them, are counted here as
    they end.
    """
    if settings.service.max_stored_bytes_per_user is None:
        return
    refusal: LimitReached | None = None
    for user_id in builds.users_waiting(engine, run_id):
        try:
            builds.require_room(engine, user_id, limits_of(engine, settings, images, user_id))
            return
        except LimitReached as error:
            refusal = error
    if refusal is not None:
        raise refusal
