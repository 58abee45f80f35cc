"""Builds one image, from the request to the finished image: the steps, in order.

`plan` stops before anything is built, `build_image` goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from image_builder.build import job, publish, relock, reuse
from image_builder.build.context import BuildContext, Built, step
from image_builder.build.log import BuildLog, DigestingObserver
from image_builder.build.signing import beside_sifs
from image_builder.errors import (
    CicError,
    ErrorCode,
    bounded,
)
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Runner, run
from image_builder.host.workspace import made_workspace
from image_builder.observer import Observer
from image_builder.plan import resolve
from image_builder.plan.inputs import Inputs
from image_builder.plan.render import render_request
from image_builder.proof.keys import Signer, signer_of
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from image_builder.state import BuildState
from image_builder.store.image_store import Images, open_images
from image_builder.store.record import ImageRecord


class NotWanted(CicError):
    """The request is withdrawn; the shared part of the work is done, and stays for others."""

    code = ErrorCode.CANCELLED

    def __init__(self) -> None:
        super().__init__("No request waits for this image under this name any more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Describes what would be built.

    `description_yaml` is the `eflows4hpc.yaml` that the request's own description is.
    """

    image_id: str
    filename: str | None
    identity: str | None
    spack_yaml: str | None
    dockerfile: str
    warnings: tuple[str, ...]
    description_yaml: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """Describes what was built.

    The SIF's fields are None for the docker engine; `reused` says that nothing was built.
    """

    image_id: str
    identity: str
    filename: str | None
    sif_path: Path | None
    sha256: str | None
    size_bytes: int | None
    pushed_digest: str | None
    reused: bool
    audit: dict[str, Any] | None
    warnings: tuple[str, ...]


def kept_request(name: str, settings: LibrarySettings) -> dict[str, Any]:
    """Return the request of a stored image, by its SIF's name or its identity, to build it again.

    Raises `InvalidRequest`.
    """
    store = open_images(settings.build, settings.registry)
    return relock.stored_materials(store, name).request


def plan(request: BuildRequest, settings: LibrarySettings, *, inputs: Inputs | None = None) -> Plan:
    """Return what `request` would build, without building or storing anything.

    Raises what `resolve` and `render_request` do.
    """
    pinned = inputs or _resolved(request, settings)
    rendered = render_request(request, pinned, settings)
    return Plan(
        image_id=pinned.image_id,
        filename=pinned.filename,
        identity=pinned.identity,
        spack_yaml=rendered.environment.spack_yaml,
        dockerfile=rendered.recipe.dockerfile,
        warnings=pinned.warnings + rendered.environment.warnings,
        description_yaml=pinned.step.text,
    )


def build_image(
    request: BuildRequest,
    *,
    settings: LibrarySettings,
    workspace: Path,
    observer: Observer,
    cancel: CancelToken,
    inputs: Inputs | None = None,
    runner: Runner = run,
    requested_at: Callable[[], float | None] | None = None,
) -> BuildResult:
    """Build what `request` asks for, in the folder `workspace`, which is removed at the end.

    An image with the same identity that exists already is used, unless `force`. Raises a `CicError`
    that says why there is no image; then nothing was tagged, pushed or stored. `requested_at` is
    called before the image is pushed, converted or named: it returns when the image was last
    requested under its name, as names follow this order, or None if no request waits for it any
    more, and then `NotWanted` is raised.
    """
    with cancel.limited(settings.build.total_timeout_s, ErrorCode.TOTAL_TIMEOUT):
        return _build_image(
            request, settings, workspace, observer, cancel, inputs, runner, requested_at
        )


def _build_image(
    request: BuildRequest,
    settings: LibrarySettings,
    workspace: Path,
    observer: Observer,
    cancel: CancelToken,
    inputs: Inputs | None,
    runner: Runner,
    requested_at: Callable[[], float | None] | None,
) -> BuildResult:
    observer.entered(BuildState.STARTED)
    with step(observer, "look up what is named"):
        pinned = resolve.with_base_image(
            request, inputs or _resolved(request, settings, cancel), settings, cancel
        )
    for warning in pinned.warnings:
        observer.line(f"Warning: {warning}")
    signer = signer_of(settings.proof)
    store = open_images(settings.build, settings.registry, beside=beside_sifs(signer))

    def submitted_at() -> float:
        newest = pinned.submitted_at if requested_at is None else requested_at()
        if newest is None:
            raise NotWanted
        return newest

    with (
        build_context(
            request, pinned, settings, workspace, observer, cancel, runner, submitted_at, signer
        ) as context,
        store.using(context.identity),
    ):
        if (stored := reuse.stored_sif(context, store)) is not None:
            return _result(context, store, stored)
        built = reuse.existing_image(context, store) or job.build(context, store)
        pushed_digest = publish.name_image(context, store, built)
        record = publish.store_image(context, store, built, pushed_digest)
        return _result(context, store, record, built=built, pushed_digest=pushed_digest)


def _resolved(
    request: BuildRequest, settings: LibrarySettings, cancel: CancelToken | None = None
) -> Inputs:
    """Return what a request names, pinned; an image of this store may be named to be built again."""
    kept = relock.of_library(request, open_images(settings.build, settings.registry))
    return resolve.resolve(request, settings, cancel=cancel, relock=kept)


@contextlib.contextmanager
def build_context(
    request: BuildRequest,
    inputs: Inputs,
    settings: LibrarySettings,
    folder: Path,
    observer: Observer,
    cancel: CancelToken,
    runner: Runner,
    submitted_at: Callable[[], float],
    signer: Signer | None = None,
) -> Iterator[BuildContext]:
    """Yield what the steps of one build share; the folder is removed at the end."""
    digesting = DigestingObserver(observer)
    with (
        made_workspace(folder, min_free_bytes=settings.build.min_free_bytes) as workspace,
        contextlib.ExitStack() as until_its_end,
    ):
        yield BuildContext(
            request=request,
            inputs=inputs,
            settings=settings,
            workspace=workspace,
            observer=digesting,
            cancel=cancel,
            runner=runner,
            log=BuildLog(digesting, settings.build.log_max_bytes),
            submitted_at=submitted_at,
            until_its_end=until_its_end,
            signer=signer,
        )


def build_debug_image(
    request: BuildRequest,
    *,
    settings: LibrarySettings,
    workspace: Path,
    observer: Observer,
    cancel: CancelToken,
) -> str:
    """Return the id of an image with the environment in which Spack would work on `request`.

    Nothing is concretized yet. Raises `UserError` for a request that needs no Spack.
    """
    pinned = resolve.with_base_image(
        request, _resolved(request, settings, cancel), settings, cancel
    )
    with build_context(
        request, pinned, settings, workspace, observer, cancel, run, lambda: pinned.submitted_at
    ) as context:
        return job.build_debug_image(context)


def _result(
    context: BuildContext,
    store: Images,
    record: ImageRecord,
    *,
    built: Built | None = None,
    pushed_digest: str | None = None,
) -> BuildResult:
    inputs = context.inputs
    has_sif = record.sha256 is not None and inputs.filename is not None
    return BuildResult(
        image_id=inputs.image_id,
        identity=context.identity,
        filename=inputs.filename,
        sif_path=store.path_of(record.sha256) if has_sif and record.sha256 else None,
        sha256=record.sha256 if has_sif else None,
        size_bytes=record.size_bytes if has_sif else None,
        pushed_digest=pushed_digest,
        reused=built is None or built.reused,
        audit=record.details.get("audit"),
        warnings=tuple(map(bounded, inputs.warnings + (built.warnings if built else ()))),
    )
