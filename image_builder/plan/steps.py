"""Opens what a step comes from, and finds, reads and writes a step."""

from __future__ import annotations

import functools
from pathlib import Path

from image_builder.errors import Unavailable
from image_builder.host.cancellation import CancelToken
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings, RepositorySettings
from image_builder.sources.git.remote import Network
from image_builder.sources.git.trees import MTIME_S
from image_builder.sources.local_step import copy_local, local_step, read_local
from image_builder.sources.own_description import own_step, read_own, write_own
from image_builder.sources.software_catalogue import Catalogue
from image_builder.sources.step import StepFiles, StepRef, limits_of
from image_builder.sources.uploads import uploaded_step
from image_builder.sources.user_repositories import fetch_step
from image_builder.sources.workflow_registry import WorkflowRegistry

LATEST_S = 2**32 - 1
"""The last second that squashfs can write, since 1970."""


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
