"""Pushing a checked image to the image registry."""

from __future__ import annotations

import re

from image_builder.build.failures import classify
from image_builder.errors import CicError, ErrorCode, NoSpace, ServiceError, Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, LineSink, ProcessFailed, Runner

_PUSHED = re.compile(r"\bdigest: (sha256:[0-9a-f]{64})\b")


class PushFailed(ServiceError):
    """The image registry refused the image or did not take it."""

    code = ErrorCode.PUSH_FAILED


def push_image(
    command: Command, run: Runner, *, on_line: LineSink, cancel: CancelToken
) -> str | None:
    """Push a named image and return the digest that the registry gave it.

    Raises `Unavailable` for what may pass, `PushFailed`, `NoSpace`, `LimitReached` or `Cancelled`.
    """
    digests: list[str] = []

    def hear(line: str) -> None:
        digests.extend(_PUSHED.findall(line))
        on_line(line)

    try:
        run(command, on_line=hear, cancel=cancel)
    except ProcessFailed as error:
        reason = next((line for line in reversed(error.tail) if line.strip()), str(error))
        raise _push_failed(
            command.argv[-1], reason, classify.classify(error.tail, step=classify.PUSH)
        ) from error
    return digests[-1] if digests else None


def _push_failed(image_id: str, reason: str, cause: classify.Cause) -> CicError:
    if cause.code in (ErrorCode.IMAGE_REGISTRY_UNAVAILABLE, ErrorCode.DOCKER_UNAVAILABLE):
        return Unavailable(
            f"{cause.message} It was asked to take {image_id}: {reason}",
            hint=cause.hint,
            code=cause.code,
        )
    if cause.code is ErrorCode.NO_SPACE:
        return NoSpace(
            f"{image_id} could not be pushed: {reason}", hint="Ask the operator to free some room."
        )
    return PushFailed(
        f"The image registry did not take {image_id}: {reason}",
        hint="Check registry_cfg (url, user, token, images_prefix) and the rights of that user.",
    )
