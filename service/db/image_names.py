"""Decide which of two requests owns an image's name: the earlier one.

Names tell requests apart that lose something in them by 32 bits of a digest. That is enough by
chance, and too little against somebody who looks for a request that ends like another one's: its
image would take the other's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from image_builder.errors import ErrorCode, UserError
from image_builder.plan.image_name import request_digest
from image_builder.request.build_request import BuildRequest
from service.db.tables import BUILDS

_ENDS_IN_DIGEST = re.compile(r"-[0-9a-f]{8}:[^:/]*\Z")


def require_own_name(connection: Connection, image_id: str, request: Mapping[str, Any]) -> None:
    """Raise `UserError` when an image's name belongs to another request.

    That happens where the digests of two requests begin alike.
    """
    if not _ENDS_IN_DIGEST.search(image_id[-200:]):
        return
    first = connection.scalar(
        sa.select(BUILDS.c.request)
        .where(BUILDS.c.image_id == image_id)
        .order_by(BUILDS.c.created_at, BUILDS.c.id)
        .limit(1)
    )
    if first is not None and _meet(first, request):
        raise UserError(
            f"The name {image_id} is that of another request.",
            hint="Change this one a little: another version, or a spec that is written otherwise.",
            code=ErrorCode.CONFLICT,
        )


def _meet(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two requests for different images have digests that begin alike."""
    try:
        digests = [request_digest(BuildRequest.model_validate(one)) for one in (first, second)]
    except ValidationError:  # one of an earlier version
        return False
    return digests[0] != digests[1] and digests[0][:8] == digests[1][:8]
