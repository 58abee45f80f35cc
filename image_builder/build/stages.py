"""Runs the stages of a recipe with buildx, each as a command of its own.

Not for the results of a stage: `checks` compares them with the request, `publish` pushes and stores
them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from image_builder.build.context import BuildContext, time_limit
from image_builder.build.failures import classify
from image_builder.build.layer_cache import layer_cache
from image_builder.docker import attestations, buildx, daemon, registry
from image_builder.docker.isolation import cgroup
from image_builder.errors import (
    BuildFailed,
    CicError,
    ErrorCode,
    Interrupted,
    Misconfigured,
    ServiceError,
    Unavailable,
)
from image_builder.host.disk_guard import DiskGuard
from image_builder.host.files import UnreadableFile, read_bounded
from image_builder.host.process import Command, ProcessFailed, run
from image_builder.host.workspace import require_free_space
from image_builder.plan import resolve, steps
from image_builder.plan.render import Rendered
from image_builder.recipe import slim
from image_builder.recipe.dockerfile import (
    site_secrets,
    step_commands,
    without_unused_secrets,
)
from image_builder.recipe.stages import (
    BUNDLE_CONTEXT,
    CA_BUNDLE_FILE,
    JOBS_FILE,
    LOCK_STAGE,
    SOURCES_CONTEXT,
)
from image_builder.settings import BuildSettings
from image_builder.sources.spack_checkout import SpackSource
from image_builder.spack import lockfile

MAX_LOCK_BYTES = 32 * 1024**2
MAX_CA_BUNDLE_BYTES = 8 * 1024**2
LIMITED = frozenset({ErrorCode.OUT_OF_MEMORY, ErrorCode.TOO_MANY_PROCESSES})
"""Causes that the limits of build steps may have."""
NOT_THE_USERS_FAULT = frozenset({ErrorCode.DOCKER_UNAVAILABLE, ErrorCode.BASE_IMAGE_UNAVAILABLE})
"""Causes of a failed buildx that may be gone on another try."""


def fill_context(context: BuildContext, rendered: Rendered) -> None:
    """Write the folder that buildx sends to the builder: recipe, step, catalogue or Spack."""
    folder, inputs, settings = context.workspace.context, context.inputs, context.settings
    if context.request.is_base:
        SpackSource(settings.repositories, settings.build).copy(
            resolve.pinned_spack(inputs), folder, context.cancel
        )
    else:
        steps.extract_step(inputs.step, settings, folder / "step", context.cancel)
        steps.open_catalogue(settings).copy(
            inputs.catalogue,
            folder / "catalogue",
            folder / "spack-config",
            cancel=context.cancel,
        )
    write_dockerfile(context, rendered)
    files = {
        **rendered.recipe.files,
        CA_BUNDLE_FILE: ca_bundle_text(settings.build),
        JOBS_FILE: f"{settings.build.jobs_per_build()}\n",
    }
    if inputs.runtime is not None:
        files[slim.FIRST_LINES_FILE] = slim.first_lines(folder / "step")
    context.workspace.write_context(files)


def write_dockerfile(context: BuildContext, rendered: Rendered) -> None:
    """Write the recipe's Dockerfile as this site builds it."""
    lent = site_secrets(context.settings.build)
    text = without_unused_secrets(rendered.recipe.dockerfile, lent)
    context.workspace.write_context({"Dockerfile": text})


def build_stage(context: BuildContext, stage: str, labels: dict[str, str]) -> str:
    """Build a stage and return its image's id; the image has no name yet."""
    metadata = context.workspace.scratch / "made.json"
    run_stage(context, stage, "type=docker", metadata_file=metadata, labels=labels)
    image = buildx.image_id_from_metadata(metadata.read_text("utf-8"))
    _require_size(context, image)
    return image


def _require_size(context: BuildContext, image: str) -> None:
    """Raise `BuildFailed`, and remove the image, if it is larger than the site takes."""
    most, size_bytes = context.settings.build.max_image_bytes, daemon.image_bytes(image) or 0
    if most is not None and size_bytes > most:
        daemon.remove_image(image)
        raise BuildFailed(
            f"The image has {size_bytes / 1e9:.1f} GB, and may have {most / 1e9:.1f} GB here.",
            code=ErrorCode.NO_SPACE,
            hint="Remove in post_inst.sh what the image does not need, or ask for slim.",
        )


def concretize(context: BuildContext) -> str:
    """Let Spack decide what to install and return its `spack.lock`; nothing is installed yet."""
    exported = export(context, LOCK_STAGE, (lockfile.FILE,), MAX_LOCK_BYTES)
    if lockfile.FILE not in exported:
        raise ServiceError("Spack wrote no spack.lock.")
    return exported[lockfile.FILE].decode("utf-8")


def export(
    context: BuildContext, stage: str, names: Sequence[str], max_bytes: int
) -> dict[str, bytes]:
    """Build a stage and return these of its files, as far as they exist.

    Its programs may be a stranger's. Raises `BuildFailed` for a file that is none, or too large.
    """
    folder = context.workspace.scratch / stage
    run_stage(context, stage, f"type=local,dest={folder}")
    try:
        return {
            name: read_bounded(folder / name, max_bytes)
            for name in names
            if os.path.lexists(folder / name)
        }
    except UnreadableFile as error:
        raise BuildFailed(f"What the image tells cannot be used: {error}.", step=stage) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_stage(
    context: BuildContext,
    stage: str,
    output: str,
    *,
    metadata_file: Path | None = None,
    labels: dict[str, str] | None = None,
    nonce: str | None = None,
    contexts: Mapping[str, Path] | None = None,
    attested: Sequence[str] = (),
) -> None:
    """Build one stage of the recipe; `output` is buildx's own notation.

    Raises `BuildFailed` with the cause that the log shows, `Unavailable` or `Interrupted` for what
    another try may not meet, and `LimitReached`.
    """
    build = context.settings.build
    kept = layer_cache(context.request, context.inputs, stage, context.settings)
    require_free_space(context.workspace.root, build.min_free_bytes)
    command = buildx.build_command(
        context=context.workspace.context,
        hidden=context.settings.secrets,
        platform=context.platform,
        settings=build,
        target=stage,
        environment=client_environment(context),
        labels=labels or {},
        secrets=_secrets(context),
        output=output,
        build_contexts=_sources(context) | dict(contexts or {}),
        metadata_file=metadata_file,
        nonce=_nonce(context) if nonce is None else nonce,
        cgroup=_cgroup(context),
        attested=attested,
        without_network=context.inputs.bundle is not None,
        cache_from=kept.from_references,
        cache_to=kept.to_reference,
    )
    context.log.begin(str(command))
    try:
        with time_limit(ErrorCode.BUILD_TIMEOUT):
            context.runner(command, on_line=context.log.line, cancel=_disk_guard(context))
    except ProcessFailed as error:
        raise _failure(context, command, stage, error) from error
    finally:
        context.log.end()


def _disk_guard(context: BuildContext) -> DiskGuard:
    """Return the build's token, which also ends a step that fills the service's disk or Docker's.

    Half of what a stage needs to begin is left: it is ended while there is room to end it in.
    """
    folders = [context.workspace.root, *filter(Path.is_dir, [daemon.data_folder()])]
    dockerfile = (context.workspace.context / "Dockerfile").read_text("utf-8")
    return DiskGuard(
        context.cancel,
        folders,
        min_free_bytes=context.settings.build.min_free_bytes // 2,
        steps=step_commands(dockerfile),
    )


def _failure(context: BuildContext, command: Command, stage: str, error: ProcessFailed) -> CicError:
    if error.exit_code == buildx.PLUGIN_WAS_ENDED:
        return Interrupted(command.name)
    cause = classify.classify(context.log.recent, step=stage)
    if cause.code is ErrorCode.CANCELLED:  # the runner would have said so, had this service done it
        return Interrupted(command.name)
    if cause.code in NOT_THE_USERS_FAULT:
        return Unavailable(cause.message, hint=cause.hint, code=cause.code)
    bounds = cgroup.in_force(context.settings.build) if cause.code in LIMITED else None
    limits = f" Build steps may use no more than {bounds}." if bounds else ""
    return BuildFailed(
        cause.message + limits,
        code=cause.code,
        hint=cause.hint,
        step=cause.step,
        package=cause.package,
        excerpt=cause.excerpt,
    )


def client_environment(context: BuildContext) -> dict[str, str]:
    """Return the environment of Docker's client; its configuration is the build's own.

    So is what the client leaves behind.
    """
    configuration = registry.write_docker_config(
        context.workspace.secrets / "docker", context.settings.registry
    )
    return configuration | {"TMPDIR": str(context.workspace.scratch), **attestations.ENVIRONMENT}


def _cgroup(context: BuildContext) -> str | None:
    """Return the control group of build steps, which Docker's own builder finds on this machine."""
    build = context.settings.build
    return cgroup.cgroup_of(build) if buildx.sees_local_images(build, run) else None


def _nonce(context: BuildContext) -> str:
    """Return a forced build's nonce, which keeps it from layers that are not its own.

    It is the unique name of the workspace.
    """
    root = context.workspace.root
    return f"{root.parent.name}-{root.name}" if context.request.force else ""


def _sources(context: BuildContext) -> dict[str, Path]:
    """Return the build contexts that the site or a bundle adds: a Spack source mirror among them."""
    added = {
        SOURCES_CONTEXT: context.settings.build.spack_mirror_folder,
        BUNDLE_CONTEXT: context.inputs.bundle,
    }
    return {name: folder for name, folder in added.items() if folder is not None}


def _secrets(context: BuildContext) -> dict[str, Path]:
    """Return the files that steps may mount and no layer keeps: the site's mirrors and proxies."""
    return {
        name: context.workspace.write_secret(name, text.encode())
        for name, text in site_secrets(context.settings.build).items()
    }


def ca_bundle_text(settings: BuildSettings) -> str:
    """Return the certificates that steps trust in addition to those of their image.

    Comments beside them may be in any encoding.
    """
    if settings.ca_bundle is None:
        return ""
    try:
        content = read_bounded(settings.ca_bundle.resolve(), MAX_CA_BUNDLE_BYTES)
        if content and b"CERTIFICATE-----" not in content:
            raise UnreadableFile("it holds no PEM certificate")
    except UnreadableFile as error:
        raise Misconfigured(
            f"The CA bundle {settings.ca_bundle} cannot be used: {error}.",
            hint="Let ca_bundle in build_cfg name a file of PEM certificates.",
        ) from error
    return content.decode("utf-8", "replace")


def newest_s(context: BuildContext) -> int:
    """Return the time that files get which are newer, in seconds since 1970.

    It does not tell when the image was built, and leaves alone what came with a base image: Python
    takes compiled files for those of sources with the very time of before.
    """
    bases = [one.reference for one in (context.inputs.base, context.inputs.runtime) if one]
    return max(context.step_time_s, *(daemon.image_created_s(one) or 0 for one in bases))
