"""Compares what Spack decided, and what was built, with the request."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from image_builder.audit import exported_files, smoke_test
from image_builder.audit.binaries import UnreadableInventory, audit_files
from image_builder.audit.exported_files import Sampling, Visitor
from image_builder.audit.image_facts import ImageFacts
from image_builder.audit.lock_audit import Verdict, audit, clashing_in_view
from image_builder.build.context import BuildContext
from image_builder.docker import daemon
from image_builder.docker.container import cgroup_for
from image_builder.errors import BuildFailed, CicError, ErrorCode, ServiceError
from image_builder.host.text_cache import TextCache
from image_builder.recipe.environment import Environment
from image_builder.recipe.stages import INSTALL_TREES
from image_builder.sif.begun import BegunSif
from image_builder.spack.lockfile import UnreadableLock

MAX_KNOWN_SAMPLES = 2000
"""Of so many samples of programs it is kept which instructions they hold."""


def audit_lock(context: BuildContext, environment: Environment, lock: dict[str, Any]) -> Verdict:
    """Compare the lockfile with the request before anything is installed. Raises `BuildFailed`."""
    try:
        verdict = audit(
            lock,
            target=environment.target,
            mpi=environment.mpi,
            gpu=environment.gpu,
            gpu_arch=environment.gpu_arch,
            without_gpu=environment.without_gpu,
            roots=environment.roots,
        )
    except UnreadableLock as error:
        raise ServiceError(
            f"Spack's lock file cannot be read: {error}.",
            hint="The base image's Spack may be newer than this service knows.",
        ) from error
    _require_one_view(environment, lock)
    return require_passed(context, verdict)


def _require_one_view(environment: Environment, lock: dict[str, Any]) -> None:
    """Refuse a second package of a name in a view; Spack checks that only after the build."""
    if not environment.has_view:
        return
    view = (environment.spack or {}).get("view")
    link = view["default"].get("link", "all") if isinstance(view, dict) else "all"
    clashes = clashing_in_view(lock, types={"run"} if link == "run" else {"link", "run"})
    if clashes:
        named = ", ".join(f"{one} and {other}" for one, other in clashes[:5])
        raise BuildFailed(
            f"Spack decided on two of a package, and one view cannot hold both: {named}.",
            code=ErrorCode.CONFLICT,
            hint="Write concretizer: unify: true below spack, or view: false.",
            step="spack concretize",
        )


def examine(
    context: BuildContext,
    image: str,
    verdict: Verdict | None,
    target: str,
    visitors: Sequence[Visitor] = (),
    begun: BegunSif | None = None,
) -> tuple[Verdict | None, ImageFacts | None]:
    """Audit the programs and libraries of an image, and gather its facts, in one pass.

    An image that does not pass is removed. What cannot be examined is a warning. Without a verdict
    on a lockfile there is nothing to audit. `visitors` look at the files as they are read, and a
    SIF that was `begun` takes them.
    """
    trees = INSTALL_TREES if verdict is not None else ()
    try:
        found = exported_files.look(
            image, trees, context.platform, _sampling(context), context.cancel, visitors, begun
        )
        if found.facts.incomplete:
            context.warn(f"not all of the image's facts are known: {found.facts.incomplete}")
        if verdict is None:
            return None, found.facts
        whole = audit_files(verdict, found.inventory, platform=context.platform, target=target)
    except (CicError, UnreadableInventory) as error:
        context.cancel.check()
        context.warn(f"what was built was not looked at: {error}")
        return verdict, None
    try:
        return require_passed(context, whole), found.facts
    except BuildFailed:
        daemon.remove_image(image)
        raise


def _sampling(context: BuildContext) -> Sampling:
    build, base = context.settings.build, context.inputs.base
    folder = build.tmp_folder / "cache" / "instructions"
    return Sampling(
        known=TextCache(folder, ".json", most=MAX_KNOWN_SAMPLES),
        known_for=base.digest or base.reference,
        image=base.reference,
        recipe_version=context.inputs.recipe_version,
        folder=context.workspace.scratch / "samples",
        cpus=build.jobs_per_build(),
        cgroup=cgroup_for(build),
        runner=context.runner,
    )


def run_smoke(context: BuildContext, image: str, environment: Environment) -> tuple[str, ...]:
    """Run the description's smoke command, if it has one, and return the warnings.

    An image that fails it is removed, and the command's error is raised.
    """
    if not environment.smoke:
        return ()
    build = context.settings.build
    if reason := smoke_test.incompatibility(
        image,
        context.request.machine,
        runner=context.runner,
        cancel=context.cancel,
        cgroup=cgroup_for(build),
    ):
        warning = f"The smoke command was not run: {reason}"
        context.warn(warning)
        return (warning,)
    context.observer.line(f"Smoke command: {shlex.join(environment.smoke)}")
    try:
        with context.step("run the smoke command"):
            smoke_test.run_smoke(
                image,
                environment.smoke,
                machine=context.request.machine,
                step_id=context.request.step_name,
                timeout_s=build.smoke_timeout_s,
                cpus=build.jobs_per_build(),
                cgroup=cgroup_for(build),
                runner=context.runner,
                on_line=context.log.line,
                cancel=context.cancel,
            )
    except CicError:
        daemon.remove_image(image)
        raise
    return ()


def require_passed(context: BuildContext, verdict: Verdict) -> Verdict:
    """Write the verdict's table to the log and return the verdict.

    Raises `BuildFailed` unless the verdict is good.
    """
    context.observer.line("Audit of the image against the request:")
    for line in verdict.table().splitlines():
        context.observer.line(f"  {line}")
    if not verdict.ok:
        raise BuildFailed(
            "What Spack made of the request is not what was asked for: "
            + "; ".join(map(str, verdict.problems[:5])),
            code=ErrorCode.TARGET_MISMATCH,
            step="audit",
            hint="Nothing was published.",
        )
    return verdict
