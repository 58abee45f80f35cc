"""Let the owner of a private image say who else sees it."""

from __future__ import annotations

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.plan.image_name import is_private_name
from image_builder.store import spellings
from service.db import shares
from service.db.shares import Audience
from service.errors import Forbidden, Missing
from service.sight import Sight


def share(sight: Sight, filename: str, audience: Audience) -> None:
    """Share an image with these users and groups, and with nobody else.

    Raises `Missing` for an image that the user does not see, `Forbidden` for another owner's, and
    `InvalidRequest` for one of the site, for names that are no user's, and for groups that are none
    of the owner's.
    """
    image_id = owned(sight, filename)
    if image_id is not None:
        shares.share(sight.engine, sight.user_id, image_id, audience)
        return
    if sight.by_name(filename) is None:
        raise Missing(
            f"There is no image {filename[:300]}.", hint="GET /image/ lists the finished images."
        )
    if is_private_name(filename):
        raise Forbidden("Only its owner shares an image.", hint="Ask who shared it with you.")
    raise InvalidRequest(
        [FieldProblem("users", "everybody may see this image", "share private images alone")]
    )


def shared_with(sight: Sight, filename: str) -> Audience | None:
    """Return with whom the user shares an image; None for an image that is not the user's own."""
    image_id = owned(sight, filename)
    return None if image_id is None else shares.shared_with(sight.engine, sight.user_id, image_id)


def owned(sight: Sight, filename: str) -> str | None:
    """Return the image that the user owns under a file name, or None."""
    if not is_private_name(filename):
        return None
    known = (filename, *spellings.of_filename(filename))
    return shares.owned_image(sight.engine, sight.user_id, known)
