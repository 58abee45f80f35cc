"""From a user's request to a build on disk."""

from __future__ import annotations

import logging

from image_builder.request import BuildRequest
from image_builder.resolve import Inputs, resolve
from image_builder.storage import ImageRecord
from service import store
from service.errors import Forbidden, QuotaExceeded
from service.models import Run, User
from service.services import Services

logger = logging.getLogger(__name__)


def submit(request: BuildRequest, user: User, services: Services) -> str:
    """Accept a request and return its build's id. What was accepted is on disk, and ends FINISHED or FAILED.

    Raises `Forbidden`, `QuotaExceeded`, and what `resolve` raises: then nothing was accepted.
    """
    if request.is_base and not user.is_admin:
        raise Forbidden("Only administrators may build the base image.")
    _require_room(user, services)
    inputs = resolve(request, services.settings.library)
    new = _new_build(request, inputs, user)
    if (answer := _already_built(request, inputs, services)) is not None:
        run, record = answer
        build_id = store.create_finished(new, run.id, sha256=record.sha256, size_bytes=record.size_bytes)
        logger.info("build answered by an earlier one", extra={"build": build_id, "user": user.name})
        return build_id
    build_id, run_id, joined = store.create_or_join(new)
    logger.info("build joined" if joined else "build queued",
                extra={"build": build_id, "run": run_id, "user": user.name})
    if not joined:
        services.executor.submit(run_id)
    return build_id


def _require_room(user: User, services: Services) -> None:
    limit = services.settings.service.max_queued_builds_per_user
    queued, _ = store.count_builds(user.id)
    if queued >= limit:
        raise QuotaExceeded(f"You have {queued} builds in the queue, and {limit} is the limit.",
                            hint="Wait for some of them, or cancel some.")


def _new_build(request: BuildRequest, inputs: Inputs, user: User) -> store.NewBuild:
    share_key = None
    if inputs.identity is not None:
        share_key = inputs.identity + ("+force" if request.force else "")
    return store.NewBuild(user_id=user.id, request=request.model_dump(mode="json"),
                          inputs=inputs.model_dump(mode="json"), identity=inputs.identity, share_key=share_key,
                          image_id=inputs.image_id, filename=inputs.filename, push=inputs.push,
                          warnings=inputs.warnings)


def _already_built(request: BuildRequest, inputs: Inputs, services: Services) -> tuple[Run, ImageRecord] | None:
    """The finished run that answers a request without any work: its SIF is stored, and its push done, if any."""
    if request.force or inputs.identity is None or inputs.filename is None:
        return None
    record = services.store.by_identity(inputs.identity)
    run = store.finished_run(inputs.identity)
    if run is None or record is None or record.sha256 is None:
        return None
    result = run.result or {}
    if inputs.push and not (result.get("pushed_digest") and result.get("image_id") == inputs.image_id):
        return None
    named = services.store.by_name(inputs.filename)
    if named is None or named.sha256 != record.sha256:
        record = services.store.point(record.model_copy(update={"filename": inputs.filename,
                                                                "image_id": inputs.image_id}))
    return run, record
