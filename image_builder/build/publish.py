"""Publishes an image that passed its checks: pushes it, converts it and stores the SIF."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator

from image_builder.build import evidence, signing
from image_builder.build.context import BuildContext, Built, time_limit
from image_builder.build.failures import classify
from image_builder.build.stages import client_environment, newest_s, run_stage
from image_builder.docker import attestations, buildx, daemon, registry
from image_builder.docker.attestations import Attested, NotAttested
from image_builder.errors import (
    BuildFailed,
    CicError,
    ErrorCode,
    NoSpace,
    ServiceError,
    Unavailable,
)
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, LineSink, ProcessFailed, Runner, run
from image_builder.host.workspace import require_free_space
from image_builder.proof import provenance
from image_builder.recipe.stages import FINAL_STAGE, SLIM_STAGE
from image_builder.sif import convert
from image_builder.spack import lockfile
from image_builder.state import BuildState
from image_builder.store.image_store import Images
from image_builder.store.record import (
    COMPRESSOR,
    IMAGE_BYTES,
    PUSHED_AS,
    SIGNED,
    SUBMITTED_AT,
    ImageRecord,
)

PUSH_TRIES = 3
NAMING_POLL_S = 0.2
_PUSHED = re.compile(r"\bdigest: (sha256:[0-9a-f]{64})\b")


class PushFailed(ServiceError):
    """The image registry refused the image or did not take it."""

    code = ErrorCode.PUSH_FAILED


def push_image(
    command: Command, run: Runner, *, on_line: LineSink, cancel: CancelToken
) -> str | None:
    """Push a named image and return the digest that the registry gave it.

    Raises `Unavailable` for what another try may not meet, `PushFailed`, `NoSpace`, `LimitReached`
    or `Cancelled`.
    """
    digests: list[str] = []

    def keep_digests(line: str) -> None:
        digests.extend(_PUSHED.findall(line))
        on_line(line)

    try:
        run(command, on_line=keep_digests, cancel=cancel)
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


def name_image(context: BuildContext, store: Images, built: Built) -> str | None:
    """Give the image its name, push it where that is requested, and return its digest there.

    It is pushed under a name of its identity, which no other image takes. The requested name moves
    forward only: an image that was requested before the one that has the name does not take it.
    """
    pushed, image_id = None, context.inputs.image_id
    if context.inputs.push:
        with context.step("push"):
            pushed = _push(context, store, built)
            if pushed.digest is not None:
                lock = store.document(context.identity, lockfile.FILE)
                signing.sign_pushed(context, built, pushed.digest, lock=lock)
    with _naming(context, store):
        if store.take_name(_owner(context)):
            daemon.tag_image(built.image, image_id)
            if pushed is not None:
                pushed.name(image_id)
        else:
            own_name = registry.identity_name(image_id, context.identity)
            daemon.tag_image(built.image, own_name)
            context.warn(
                f"{image_id} stays with an image that was requested later; this one is {own_name}."
            )
    return pushed.digest if pushed is not None else None


def _owner(context: BuildContext) -> ImageRecord:
    return ImageRecord(
        identity=context.identity,
        image_id=context.inputs.image_id,
        platform=context.platform,
        details={SUBMITTED_AT: context.submitted_at()},
    )


@contextlib.contextmanager
def _naming(context: BuildContext, store: Images) -> Iterator[None]:
    """Wait until no other build on this machine gives away the image's name."""
    while True:
        with store.naming(context.inputs.image_id) as is_alone:
            if is_alone:
                yield
                return
        context.cancel.wait(NAMING_POLL_S)
        context.cancel.check()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pushed:
    """Describes what the image registry has: a digest, and how it gets a name there."""

    digest: str | None
    name: Callable[[str], object]


def _push(context: BuildContext, store: Images, built: Built) -> _Pushed:
    """Push the image under the name of its identity.

    It is pushed with attestations where the builder makes them.
    """
    context.cancel.check()
    context.submitted_at()
    image_id, build = context.inputs.image_id, context.settings.build
    context.observer.line(f"Pushing {image_id}")
    if build.attestations and not buildx.sees_local_images(build, run):
        try:
            with time_limit(ErrorCode.PUSH_TIMEOUT):
                return _push_attested(context, store, built)
        except (BuildFailed, NotAttested, ProcessFailed, Unavailable) as error:
            context.warn(f"the image is pushed without attestations: {error}")

    def push_as(name: str) -> str | None:
        command = registry.push_command(
            name,
            context.settings.registry,
            environment=client_environment(context),
            timeout_s=build.push_timeout_s,
        )
        with time_limit(ErrorCode.PUSH_TIMEOUT):
            return push_until_it_is_this(context, command, built)

    return _Pushed(digest=push_as(registry.identity_name(image_id, context.identity)), name=push_as)


def push_until_it_is_this(context: BuildContext, command: Command, built: Built) -> str | None:
    """Push a name until what was pushed under it is this image, and return its digest.

    Another program may have taken the name in the daemon just before the push read it.
    """
    name = command.argv[-1]
    repository = registry.repository_of(name)
    for _ in range(PUSH_TRIES):
        daemon.tag_image(built.image, name)
        digest = push_image(
            command, context.runner, on_line=context.observer.line, cancel=context.cancel
        )
        if digest is None or f"{repository}@{digest}" in daemon.image_digests(built.image):
            return digest
    raise Unavailable(
        f"Other builds push under the name {name} at the same time.",
        hint="Ask for it again.",
        code=ErrorCode.PUSH_FAILED,
    )


def _push_attested(context: BuildContext, store: Images, built: Built) -> _Pushed:
    """Let the builder push, and name what it pushed; an earlier build may have done so."""
    image_id, build = context.inputs.image_id, context.settings.build
    attested = Attested(
        build,
        environment=client_environment(context),
        runner=context.runner,
        on_line=context.observer.line,
        cancel=context.cancel,
    )
    layers, repository = daemon.image_layers(built.image), registry.repository_of(image_id)
    if built.reused:
        reference = _pushed_before(store, context.identity, repository) or image_id
    else:
        reference = _pushed_by_builder(context, built, attestations.output(image_id))
    digest = attested.require(reference, layers)
    by_digest = f"{repository}@{digest}"
    attested.name(by_digest, registry.identity_name(image_id, context.identity))
    return _Pushed(digest=digest, name=lambda name: attested.name(by_digest, name))


def _pushed_before(store: Images, identity: str, repository: str) -> str | None:
    """Return what this service pushed of the identity to this repository, or None."""
    earlier = store.by_identity(identity)
    reference = str(earlier.details.get(PUSHED_AS) or "") if earlier is not None else ""
    return reference if reference.startswith(f"{repository}@") else None


def _pushed_by_builder(context: BuildContext, built: Built, output: str) -> str:
    metadata = context.workspace.scratch / "pushed.json"
    run_stage(
        context,
        SLIM_STAGE if built.is_slim else FINAL_STAGE,
        output,
        labels=built.labels,
        attested=attestations.wanted(context.settings.build),
        metadata_file=metadata,
    )
    return attestations.pushed(context.inputs.image_id, metadata.read_text("utf-8"))


def store_image(
    context: BuildContext, store: Images, built: Built, pushed_digest: str | None
) -> ImageRecord:
    """Keep the image's record, and its SIF if the request asks for one: a stored or a new one."""
    earlier = store.by_identity(context.identity)
    pushed_as = None
    if pushed_digest is not None:
        pushed_as = f"{registry.repository_of(context.inputs.image_id)}@{pushed_digest}"
    elif built.reused and earlier is not None:
        pushed_as = earlier.details.get(PUSHED_AS)
    record = _record(context, built, pushed_as)
    lock = store.document(context.identity, lockfile.FILE)
    if record.filename is None:
        finished = store.record(record)
    elif built.reused and earlier is not None and earlier.sha256 is not None:
        of_its_sif = {key: earlier.details.get(key) for key in (COMPRESSOR, SIGNED)}
        details = {**record.details, **of_its_sif}
        kept = {"sha256": earlier.sha256, "size_bytes": earlier.size_bytes, "details": details}
        finished = store.point(record.model_copy(update=kept))
    else:
        with context.step("convert to a SIF"):
            finished = _convert(context, store, built, record, lock)
    _keep_statement(context, store, built, finished, lock)
    return finished


def _keep_statement(
    context: BuildContext, store: Images, built: Built, record: ImageRecord, lock: str | None
) -> None:
    """Keep how a finished image came about as a document of it."""
    before = store.document(context.identity, provenance.FILE)
    said = evidence.statements(context, built, record, lock=lock, earlier=before)
    if said:
        store.keep_documents(context.identity, said)


def _record(context: BuildContext, built: Built, pushed_as: str | None) -> ImageRecord:
    return ImageRecord(
        identity=context.identity,
        image_id=context.inputs.image_id,
        platform=context.platform,
        filename=context.inputs.filename,
        details={
            "request": context.request.model_dump(mode="json"),
            "recipe": context.inputs.recipe_version,
            "commit": context.inputs.step.commit,
            "audit": built.audit,
            "scan": built.scan,
            SIGNED: context.signer is not None,
            "labels": built.labels,
            IMAGE_BYTES: daemon.image_bytes(built.image),
            "slim": built.is_slim,
            "full_because": built.full_because,
            PUSHED_AS: pushed_as,
            SUBMITTED_AT: context.submitted_at(),
        },
    )


def _convert(
    context: BuildContext, store: Images, built: Built, record: ImageRecord, lock: str | None
) -> ImageRecord:
    context.cancel.check()
    compressor = context.settings.build.sif_compressor
    record = record.model_copy(update={"details": {**record.details, COMPRESSOR: compressor}})
    context.observer.entered(BuildState.CONVERTING)
    require_free_space(context.workspace.root, context.settings.build.min_free_bytes)
    with store.temporary_path() as temporary, time_limit(ErrorCode.CONVERSION_TIMEOUT):
        conversion = convert.convert(
            built.image,
            temporary,
            platform=context.platform,
            settings=context.settings.build,
            scratch=context.workspace.scratch,
            on_line=context.log.line,
            cancel=context.cancel,
            time_s=context.step_time_s,
            newest_s=newest_s(context),
            source=context.identity,
            evidence=evidence.SifEvidence(context, built, lock),
            begun_sif=built.begun_sif,
        )
        # A conversion takes minutes, in which the image may be requested again.
        details = {**record.details, SUBMITTED_AT: context.submitted_at()}
        return store.publish(
            temporary, record.model_copy(update={"details": details}), sha256=conversion.sha256
        )
