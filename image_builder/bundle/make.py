"""Makes a bundle: everything that building a request needs, in one archive that shows its maker."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from image_builder import pipeline
from image_builder.build.context import BuildContext
from image_builder.bundle import archive, images
from image_builder.bundle.gather import gather
from image_builder.bundle.manifest import (
    FORMAT,
    IMAGES,
    MAX_FILES,
    MEDIA_TYPE,
    Image,
    Manifest,
    Step,
    Trees,
)
from image_builder.errors import ErrorCode, NoSpace, UserError
from image_builder.host import files
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Runner, run
from image_builder.observer import Observer
from image_builder.plan import resolve
from image_builder.plan.inputs import Inputs
from image_builder.proof.keys import signer_of
from image_builder.recipe.labels import public_address
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from image_builder.state import BuildState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """Describes a bundle that was written."""

    identity: str
    size_bytes: int
    parts_bytes: int
    """The sum of its files."""
    files: int
    is_signed: bool


def make_bundle(
    request: BuildRequest,
    *,
    settings: LibrarySettings,
    output: Path,
    workspace: Path,
    observer: Observer,
    cancel: CancelToken,
    with_built: bool = False,
    runner: Runner = run,
) -> Made:
    """Write a bundle of a request to the file `output`, which appears whole or not at all.

    The request is pinned and concretized now. A bundle `with_built` packages has what Spack builds,
    too, which takes as long as that. Raises `CicError`.
    """
    if request.is_base:
        raise UserError("A bundle holds a base image, and is none.", hint="Name a step.")
    if request.from_lock is not None:
        raise UserError(
            "A bundle has a lockfile of its own.", hint="Make it of the request without from_lock."
        )
    observer.entered(BuildState.STARTED)
    with cancel.limited(settings.build.total_timeout_s, ErrorCode.TOTAL_TIMEOUT):
        return _make(request, settings, output, workspace, observer, cancel, with_built, runner)


def _make(
    request: BuildRequest,
    settings: LibrarySettings,
    output: Path,
    workspace: Path,
    observer: Observer,
    cancel: CancelToken,
    with_built: bool,
    runner: Runner,
) -> Made:
    pinned = resolve.with_base_image(
        request, resolve.resolve(request, settings, cancel=cancel), settings, cancel
    )
    for warning in pinned.warnings:
        observer.line(f"Warning: {warning}")
    built = workspace / "scratch" / "built" if with_built else None
    if built is not None:
        build = settings.build.model_copy(update={"spack_cache": str(built)})
        settings = settings.model_copy(update={"build": build})
    signer = signer_of(settings.proof)
    with pipeline.build_context(
        request,
        pinned,
        settings,
        workspace,
        observer,
        cancel,
        runner,
        lambda: pinned.submitted_at,
        signer,
    ) as context:
        return _write(context, output, built)


def _write(context: BuildContext, output: Path, built: Path | None) -> Made:
    places = gather(context, built=built)
    blobs = context.workspace.scratch / IMAGES
    blobs.mkdir()
    inputs = context.inputs
    base, runtime = (
        None
        if facts is None
        else images.save(
            facts,
            blobs,
            context.workspace.scratch,
            runner=context.runner,
            cancel=context.cancel,
        )
        for facts in (inputs.base, inputs.runtime)
    )
    assert base is not None
    places |= {f"{IMAGES}/{blob.name}": blob for blob in blobs.iterdir()}
    if len(places) > MAX_FILES:
        raise UserError(f"The bundle would hold {len(places)} files, and may hold {MAX_FILES}.")
    manifest = _manifest(context, base, runtime, places)
    signature = (
        None if context.signer is None else context.signer.envelope(MEDIA_TYPE, manifest.text())
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(output) as fresh, fresh.open("xb") as file:
            archive.write(file, manifest, places, signature=signature, cancel=context.cancel)
    except OSError as error:
        if NoSpace.is_meant_by(error):
            raise NoSpace(
                f"The disk that holds {output} is full.", hint="Free some room."
            ) from None
        raise UserError(f"The bundle cannot be written to {output}: {error.strerror}.") from None
    return Made(
        identity=context.identity,
        size_bytes=output.stat().st_size,
        parts_bytes=sum(file.size for file in manifest.files),
        files=len(manifest.files),
        is_signed=signature is not None,
    )


def _manifest(
    context: BuildContext, base: Image, runtime: Image | None, places: Mapping[str, Path]
) -> Manifest:
    inputs, request = context.inputs, context.request
    repository = context.settings.repositories.workflow_repository.partition("#")[0]
    return Manifest(
        format=FORMAT,
        recipe=inputs.recipe_version,
        platform=context.platform,
        identity=context.identity,
        request=request.image_fields(),
        step=_step(context, inputs),
        catalogue=Trees.model_validate(dataclasses.asdict(inputs.catalogue)),
        base=base,
        runtime=runtime,
        full_because=inputs.full_because,
        branch_commits=inputs.branch_commits,
        workflow_repository=public_address(repository),
        files=[archive.file_of(path, places[path]) for path in sorted(places)],
    )


def _step(context: BuildContext, inputs: Inputs) -> Step:
    step = inputs.step
    return Step(
        tree=step.tree,
        commit=step.commit,
        time_s=None if step.commit is None else context.step_time_s,
    )
