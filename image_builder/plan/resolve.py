"""Resolves names to commits, trees and digests, once for each submit.

From `Inputs` on, nothing that a build uses can change any more.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path

from image_builder.docker import base_image, buildx
from image_builder.docker import base_image as docker_base_image
from image_builder.docker.base_image import BaseFacts
from image_builder.errors import (
    BadDescription,
    CicError,
    ErrorCode,
    FieldProblem,
    InvalidRequest,
    Misconfigured,
    Unavailable,
    UserError,
)
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import run
from image_builder.plan.identity import identity_of
from image_builder.plan.image_name import image_name
from image_builder.plan.inputs import Inputs
from image_builder.plan.knowledge import SpackSite, names_in, require_buildable
from image_builder.plan.relock import Pins, Relock, brought, require_fit
from image_builder.recipe import slim
from image_builder.recipe.base_image import BASE_RECIPE
from image_builder.recipe.stages import LATEST_RECIPE
from image_builder.request.build_request import BuildRequest
from image_builder.request.host_cpu import host_warning
from image_builder.settings import (
    BuildSettings,
    LibrarySettings,
    RegistrySettings,
    RepositorySettings,
)
from image_builder.sources.branch_versions import specs_of, unknown_branches
from image_builder.sources.description import Description, parse_description
from image_builder.sources.git.remote import Network
from image_builder.sources.git.trees import MTIME_S
from image_builder.sources.local_step import copy_local, local_step, read_local
from image_builder.sources.own_description import own_step, read_own, write_own
from image_builder.sources.software_catalogue import Catalogue, PinnedCatalogue
from image_builder.sources.source_tree import PinnedTree
from image_builder.sources.spack_checkout import PinnedSpack, SpackSource
from image_builder.sources.step import StepFiles, StepRef, limits_of
from image_builder.sources.uploads import uploaded_step
from image_builder.sources.user_repositories import fetch_step
from image_builder.sources.workflow_registry import WorkflowRegistry

LATEST_S = 2**32 - 1
"""The last second that squashfs can write, since 1970."""
NOT_HERE_YET = "Whether a slim image can be made is found out when the build begins."
"""The warning about a base image that is not on this machine yet, so its facts are unknown."""


def resolve(
    request: BuildRequest,
    settings: LibrarySettings,
    *,
    cancel: CancelToken | None = None,
    is_built_here: bool = True,
    owner: str | None = None,
    step: StepRef | None = None,
    relock: Relock | None = None,
) -> Inputs:
    """Pin everything that `request` names, and return it with warnings.

    A private image gets the name of its `owner`, where there are users. `step` is what the request
    names, if that was looked up before. `relock` is what was kept of the finished build that the
    request names: all is pinned to that.

    Unless it `is_built_here`, this host's CPU is not considered. Raises `NotFound` for a workflow,
    step or version that does not exist, `Unavailable` for a registry that does not answer,
    `InvalidRequest` for an explicit push without an image registry. A base image that cannot be
    reached is a warning here, and ends the build when it begins.
    """
    relock = relock or brought(request)
    pins = relock.pins if relock is not None else None
    is_private = request.is_private and owner is not None
    push, push_warnings = _push_wanted(request, settings.registry, is_private=is_private)
    base, base_warnings = _pin_base(request, settings, pins)
    if relock is not None:
        require_fit(relock, request, base.spack_version if base.is_here else None)
    branches: dict[str, str] = {}
    more_warnings: list[str] = []
    runtime, full_because = None, ""
    if request.is_base:
        step, catalogue = _pin_spack(request, settings, cancel)
        more_warnings += (
            ["slim is not used: a base image is there to build in."] if request.slim else []
        )
    else:
        if pins is None:
            step = step or locate_step(request, settings, cancel)
            catalogue = open_catalogue(settings).pin(cancel=cancel)
        else:
            step, catalogue = _kept_step(request, pins, settings, step), pins.catalogue
        files, description = _read_description(step, settings)
        site = SpackSite.of(base, open_catalogue(settings), catalogue, settings)
        require_buildable(request, description, site)
        if pins is not None:
            runtime = _kept_image(pins.runtime, request, settings) if pins.runtime else None
        elif slim.is_wanted(
            request,
            description,
            has_post_install=files is not None and files.has_post_install,
            default=settings.build.slim,
        ):
            runtime, full_because = _pin_runtime(request, base, settings)
        branches, more_warnings = (
            _pin_branches(request, description, site, open_catalogue(settings))
            if pins is None
            else (dict(pins.branch_commits), [])
        )
        more_warnings += (
            _host_warnings(request, description, settings.build) if is_built_here else []
        )
        if full_because == NOT_HERE_YET:
            more_warnings.append(full_because)
        elif full_because:
            more_warnings.append(f"The full image is built, not a slim one: {full_because}")
    identity = (
        _identity(request, step, catalogue, base, branches, runtime, relock)
        if base.digest is not None and full_because != NOT_HERE_YET
        else None
    )
    name = image_name(
        request,
        prefix=settings.registry.images_prefix,
        owner=owner if is_private else None,
    )
    return Inputs(
        step=step,
        catalogue=catalogue,
        base=base,
        runtime=runtime,
        full_because=full_because,
        branch_commits=branches,
        identity=identity,
        push=push,
        relock=relock,
        submitted_at=time.time(),
        recipe_version=_recipe_version(request),
        image_id=_base_name(request, settings.build) if request.is_base else name.image_id,
        filename=name.filename if request.machine.container_engine == "singularity" else None,
        warnings=(*push_warnings, *step.warnings, *base_warnings, *more_warnings),
    )


def open_registry(settings: LibrarySettings) -> WorkflowRegistry:
    """Return the workflow registry, one for all threads; its mirror is below the site's folder."""
    repositories, build = settings.repositories, settings.build
    return _registry(repositories, build.mirrors_folder, Network.of(repositories, build))


@functools.lru_cache(maxsize=8)
def _registry(
    repositories: RepositorySettings, mirrors: Path, network: Network
) -> WorkflowRegistry:
    return WorkflowRegistry(repositories, mirrors, network=network)


def open_catalogue(settings: LibrarySettings) -> Catalogue:
    """Return the site's packages and Spack configuration, one for all threads of this process."""
    repositories, build = settings.repositories, settings.build
    return _catalogue(
        repositories, build.spack_cfg, build.mirrors_folder, Network.of(repositories, build)
    )


@functools.lru_cache(maxsize=8)
def _catalogue(
    repositories: RepositorySettings, spack_cfg: str | None, mirrors: Path, network: Network
) -> Catalogue:
    return Catalogue(repositories, spack_cfg, mirrors, network=network)


def locate_step(
    request: BuildRequest, settings: LibrarySettings, cancel: CancelToken | None = None
) -> StepRef:
    """Return which folder of which commit, or of this machine, the request means, or makes."""
    if request.is_described:
        return own_step(request)
    if request.folder is not None:
        return uploaded_step(request, settings.build.uploads, limits_of(settings.repositories))
    if request.repository is not None:
        return fetch_step(
            request,
            settings.build.uploads,
            limits_of(settings.repositories),
            Network.of(settings.repositories, settings.build),
            cancel=cancel,
        ).step
    if request.path is not None:
        return local_step(
            request.path,
            workflow=request.workflow_name,
            step_id=request.step_name,
            version=request.version,
            limits=limits_of(settings.repositories),
        )
    return open_registry(settings).locate(
        request.workflow_name, request.step_name, request.version, cancel=cancel
    )


def read_step(step: StepRef, settings: LibrarySettings) -> StepFiles:
    """Return the files of a step that decide how it is built."""
    if step.text is not None:
        return read_own(step)
    return read_local(step) if step.path is not None else open_registry(settings).read(step)


def extract_step(
    step: StepRef, settings: LibrarySettings, destination: Path, cancel: CancelToken
) -> None:
    """Write the step's folder to `destination`."""
    if step.text is not None:
        write_own(step, destination, cancel)
    elif step.path is not None:
        copy_local(step, destination, cancel, limits=limits_of(settings.repositories))
    else:
        open_registry(settings).extract(step, destination, cancel)


def step_time_s(
    request: BuildRequest, step: StepRef, settings: LibrarySettings, cancel: CancelToken
) -> int:
    """Return the one time that documents and files of an image carry, in seconds since 1970.

    It is that of the step's commit, within what files may have. For what is no step of the registry,
    or no longer one, it is the time of all files that a build writes.
    """
    if step.time_s is not None:
        return step.time_s
    if step.commit is None or step.path is not None or request.is_base:
        return MTIME_S
    try:
        return min(max(open_registry(settings).time_of(step, cancel), 0), LATEST_S)
    except Unavailable:
        return MTIME_S


def with_base_image(
    request: BuildRequest,
    inputs: Inputs,
    settings: LibrarySettings,
    cancel: CancelToken | None = None,
) -> Inputs:
    """Return the inputs with an identity, asking again for a base image that did not answer.

    Raises the error with which the base image cannot be reached.
    """
    if inputs.identity is not None:
        return _with_facts(inputs, settings, cancel)
    pulls = _Pulls(cancel)
    base = _reach_base(request, settings, pulls)[0]
    runtime, full_because = (
        _pin_runtime(request, base, settings, pulls)
        if inputs.full_because
        else (inputs.runtime, "")
    )
    if inputs.relock is not None:
        require_fit(inputs.relock, request, base.spack_version)
    identity = _identity(
        request,
        inputs.step,
        inputs.catalogue,
        base,
        inputs.branch_commits,
        runtime,
        inputs.relock,
    )
    return inputs.model_copy(
        update={
            "base": base,
            "runtime": runtime,
            "full_because": full_because,
            "identity": identity,
        }
    )


@dataclasses.dataclass(frozen=True)
class _Pulls:
    """Says that base images missing on this machine are pulled, until `cancel` is set."""

    cancel: CancelToken | None


def _with_facts(inputs: Inputs, settings: LibrarySettings, cancel: CancelToken | None) -> Inputs:
    """Return the inputs with the facts of a base image that was not here when they were pinned."""
    if inputs.base.is_here:
        return inputs
    base = inputs.base
    facts, _ = _look_at(base.reference, base.digest, base.platform, settings, _Pulls(cancel))
    return inputs.model_copy(update={"base": facts})


def pinned_spack(inputs: Inputs) -> PinnedSpack:
    """Return which Spack a base image gets.

    `Inputs` hold it in the fields of a step's folder and the catalogue's packages.
    """
    spack, catalogue = (
        PinnedTree(tree=inputs.step.tree, commit=inputs.step.commit),
        inputs.catalogue,
    )
    if catalogue.packages_tree is None:
        return PinnedSpack(spack=spack, packages=None)
    return PinnedSpack(
        spack=spack,
        packages=PinnedTree(tree=catalogue.packages_tree, commit=catalogue.packages_commit),
    )


def _pin_spack(
    request: BuildRequest, settings: LibrarySettings, cancel: CancelToken | None
) -> tuple[StepRef, PinnedCatalogue]:
    pinned = SpackSource(settings.repositories, settings.build).pin(cancel)
    step = StepRef(
        workflow=request.workflow_name,
        step_id=request.step_name,
        version=request.version,
        tree=pinned.spack.tree,
        commit=pinned.spack.commit,
    )
    if pinned.packages is None:
        return step, PinnedCatalogue()
    return step, PinnedCatalogue(
        packages_tree=pinned.packages.tree, packages_commit=pinned.packages.commit
    )


def _base_name(request: BuildRequest, build: BuildSettings) -> str:
    """Return the base image's own name, which the images of its platform are built on."""
    platform = request.machine.platform
    name = build.base_image_for(platform)
    if name is None or "@" in name:
        raise Misconfigured(
            f"build_cfg['base_image'] names no image for {platform} that could be built.",
            hint="Write a name with a tag.",
        )
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _recipe_version(request: BuildRequest) -> str:
    return BASE_RECIPE if request.is_base else LATEST_RECIPE


def _push_wanted(
    request: BuildRequest, registry: RegistrySettings, *, is_private: bool
) -> tuple[bool, list[str]]:
    if registry.url and is_private and not registry.private:
        if request.push:
            hint = 'write false, or "visibility": "site"'
            problem = "private images are not pushed to this site's image registry"
            raise InvalidRequest([FieldProblem("push", problem, hint)])
        return False, [] if request.push is False else [
            "The image is private, and the image registry is not: the image is not pushed."
        ]
    if registry.url:
        return request.push is not False, []
    if request.push:
        raise InvalidRequest(
            [
                FieldProblem(
                    "push", "no image registry is configured here", "write false, or leave it out"
                )
            ]
        )
    return False, [] if request.push is False else [
        "No image registry is configured: the image is not pushed."
    ]


def _kept_step(
    request: BuildRequest, pins: Pins, settings: LibrarySettings, step: StepRef | None
) -> StepRef:
    """Return the step that an earlier build had. Raises `UserError` if it is another one now."""
    if not request.is_own and request.path is None:
        return StepRef(
            workflow=request.workflow_name,
            step_id=request.step_name,
            version=request.version,
            tree=pins.tree,
            commit=pins.commit,
        )
    step = step or locate_step(request, settings)
    if step.tree != pins.tree:
        raise UserError(
            "The step's folder is not what it was when that image was built.",
            hint="Leave from_lock out to build what it is now.",
        )
    return step


def _kept_image(
    image: tuple[str, str], request: BuildRequest, settings: LibrarySettings
) -> BaseFacts:
    """Return an image that an earlier build was made on; it may have to be pulled later."""
    return _look_at(*image, request.machine.platform, settings, None)[0]


def _pin_base(
    request: BuildRequest, settings: LibrarySettings, pins: Pins | None = None
) -> tuple[BaseFacts, list[str]]:
    platform = request.machine.platform
    if pins is not None:
        return _look_at(*pins.base, platform, settings, None)
    try:
        return _reach_base(request, settings)
    except CicError as error:
        reference = _from_image(request, settings.build) or ""
        return docker_base_image.unprobed_base(reference, None, platform), [str(error)]


def _reach_base(
    request: BuildRequest, settings: LibrarySettings, pulls: _Pulls | None = None
) -> tuple[BaseFacts, list[str]]:
    platform = request.machine.platform
    reference = _from_image(request, settings.build)
    if reference is None:
        key = "os_image" if request.is_base else "base_image"
        raise Misconfigured(
            f"No {key} is configured for {platform}.", hint=f"Add {platform} to build_cfg['{key}']."
        )
    return _facts_of(reference, platform, settings, pulls)


def _facts_of(
    reference: str, platform: str, settings: LibrarySettings, pulls: _Pulls | None
) -> tuple[BaseFacts, list[str]]:
    """Return what is known of an image to build on, and a warning if that is little."""
    pinned, digest = base_image.resolve_base(
        reference, platform, settings.registry, local=buildx.sees_local_images(settings.build, run)
    )
    return _look_at(pinned, digest, platform, settings, pulls)


def _look_at(
    reference: str,
    digest: str | None,
    platform: str,
    settings: LibrarySettings,
    pulls: _Pulls | None,
) -> tuple[BaseFacts, list[str]]:
    facts, warning = docker_base_image.facts_or_guess(
        reference,
        digest,
        platform,
        settings.build.tmp_folder / "cache" / "bases",
        pull_from=settings.registry if pulls is not None else None,
        cancel=pulls.cancel if pulls is not None else None,
    )
    return facts, [warning] if warning else []


def _from_image(request: BuildRequest, build: BuildSettings) -> str | None:
    """The image that the request's image is built on."""
    platform = request.machine.platform
    return build.os_image_for(platform) if request.is_base else build.base_image_for(platform)


def _pin_runtime(
    request: BuildRequest,
    base: BaseFacts,
    settings: LibrarySettings,
    pulls: _Pulls | None = None,
) -> tuple[BaseFacts | None, str]:
    """Return the image that a slim image is built on, or None and why there is none."""
    platform = request.machine.platform
    reference = settings.build.runtime_base_for(platform)
    if reference is None:
        return None, f"build_cfg names no runtime_base_image for {platform}."
    try:
        runtime, _ = _facts_of(reference, platform, settings, pulls)
    except CicError as error:
        if pulls is not None and pulls.cancel is not None:
            pulls.cancel.check()
        return None, str(error)
    if not (base.is_here and runtime.is_here):
        return None, NOT_HERE_YET
    reason = slim.incompatibility(base, runtime)
    return (None, f"{reason}.") if reason else (runtime, "")


def _read_description(
    step: StepRef, settings: LibrarySettings
) -> tuple[StepFiles | None, Description | None]:
    """Return the step's files and description; None for what cannot be used.

    The build then says what is wrong with it.
    """
    files = None
    try:
        files = read_step(step, settings)
        return files, parse_description(files.description, files.description_file)
    except BadDescription:
        return files, None


def _pin_branches(
    request: BuildRequest, description: Description | None, site: SpackSite, catalogue: Catalogue
) -> tuple[dict[str, str], list[str]]:
    """Return the commits behind specs whose version is a branch, and warnings.

    The catalogue's recipes tell the branches of its packages, the base image's Spack those of its
    own, as far as it was asked before.
    """
    if description is None:
        return {}, []
    machine = [spec for spec in (request.machine.mpi, request.machine.gpu) if spec is not None]
    knows = site.remember(names_in(request, description))
    return catalogue.branch_commits(
        site.pinned,
        [specs_of(description.spack or {}), machine],
        known=unknown_branches if knows is None else knows.branches_of,
    )


def _host_warnings(
    request: BuildRequest, description: Description | None, build: BuildSettings
) -> list[str]:
    """Return a warning if this host cannot execute what Spack builds for the target.

    Build tools are compiled for the target, too. Raises `UserError` where the site refuses such
    requests.
    """
    machine = request.machine
    if not ((description is not None and description.spack) or machine.mpi or machine.gpu):
        return []
    warning = host_warning(machine.target)
    if warning is None:
        return []
    if build.unexecutable_targets == "refuse":
        raise UserError(
            warning,
            hint="Ask for an older target, or use a service on a newer host.",
            code=ErrorCode.TARGET_NOT_EXECUTABLE,
        )
    return [warning]


def _identity(
    request: BuildRequest,
    step: StepRef,
    catalogue: PinnedCatalogue,
    base: BaseFacts,
    branch_commits: Mapping[str, str],
    runtime: BaseFacts | None = None,
    relock: Relock | None = None,
) -> str:
    """Return the identity of what is built.

    What is built again has the earlier image's where all inputs are the same. Where they are not,
    as the recipe is a newer one, it has its own, apart from what Spack would decide now.
    """
    assert base.digest is not None
    identity = functools.partial(
        identity_of,
        request,
        step_tree=step.tree,
        base_digest=base.digest,
        packages_tree=catalogue.packages_tree,
        config_tree=catalogue.config_tree,
        recipe_version=_recipe_version(request),
        branch_commits=branch_commits,
        runtime_digest=runtime.digest if runtime is not None else None,
    )
    if relock is None:
        return identity()
    pins = relock.pins
    if pins is not None and (same := identity(lock_digest=pins.lock_digest)) == pins.identity:
        return same
    return identity(lock_digest=relock.digest)
