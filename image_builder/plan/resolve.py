"""Resolves names to commits, trees and digests, once for each submit.

From `Inputs` on, nothing that a build uses can change any more.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

from image_builder.docker.base_image import BaseFacts
from image_builder.errors import BadDescription, ErrorCode, FieldProblem, InvalidRequest, UserError
from image_builder.host.cancellation import CancelToken
from image_builder.plan import bases, steps
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
from image_builder.settings import BuildSettings, LibrarySettings, RegistrySettings
from image_builder.sources.branch_versions import specs_of, unknown_branches
from image_builder.sources.description import Description, parse_description
from image_builder.sources.software_catalogue import Catalogue, PinnedCatalogue
from image_builder.sources.source_tree import PinnedTree
from image_builder.sources.spack_checkout import PinnedSpack, SpackSource
from image_builder.sources.step import StepFiles, StepRef


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
    base, base_warnings = bases.pin_base(request, settings, pins)
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
            step = step or steps.locate_step(request, settings, cancel)
            catalogue = steps.open_catalogue(settings).pin(cancel=cancel)
        else:
            step, catalogue = _kept_step(request, pins, settings, step), pins.catalogue
        files, description = _read_description(step, settings)
        site = SpackSite.of(base, steps.open_catalogue(settings), catalogue, settings)
        require_buildable(request, description, site)
        if pins is not None:
            runtime = bases.kept_image(pins.runtime, request, settings) if pins.runtime else None
        elif slim.is_wanted(
            request,
            description,
            has_post_install=files is not None and files.has_post_install,
            default=settings.build.slim,
        ):
            runtime, full_because = bases.pin_runtime(request, base, settings)
        branches, more_warnings = (
            _pin_branches(request, description, site, steps.open_catalogue(settings))
            if pins is None
            else (dict(pins.branch_commits), [])
        )
        more_warnings += (
            _host_warnings(request, description, settings.build) if is_built_here else []
        )
        if full_because == bases.NOT_HERE_YET:
            more_warnings.append(full_because)
        elif full_because:
            more_warnings.append(f"The full image is built, not a slim one: {full_because}")
    identity = (
        _identity(request, step, catalogue, base, branches, runtime, relock)
        if base.digest is not None and full_because != bases.NOT_HERE_YET
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
        image_id=bases.base_name(request, settings.build) if request.is_base else name.image_id,
        filename=name.filename if request.machine.container_engine == "singularity" else None,
        warnings=(*push_warnings, *step.warnings, *base_warnings, *more_warnings),
    )


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
    pulls = bases.Pulls(cancel)
    base = bases.reach_base(request, settings, pulls)[0]
    runtime, full_because = (
        bases.pin_runtime(request, base, settings, pulls)
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


def _with_facts(inputs: Inputs, settings: LibrarySettings, cancel: CancelToken | None) -> Inputs:
    """Return the inputs with the facts of a base image that was not here when they were pinned."""
    if inputs.base.is_here:
        return inputs
    base = inputs.base
    facts, _ = bases.look_at(
        base.reference, base.digest, base.platform, settings, bases.Pulls(cancel)
    )
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
    step = step or steps.locate_step(request, settings)
    if step.tree != pins.tree:
        raise UserError(
            "The step's folder is not what it was when that image was built.",
            hint="Leave from_lock out to build what it is now.",
        )
    return step


def _read_description(
    step: StepRef, settings: LibrarySettings
) -> tuple[StepFiles | None, Description | None]:
    """Return the step's files and description; None for what cannot be used.

    The build then says what is wrong with it.
    """
    files = None
    try:
        files = steps.read_step(step, settings)
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
