"""Pins a build that is made again to what was kept of an earlier one. Pure.

Of a lockfile that a request brings, nothing but that is kept: all else is pinned as for any request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.plan.digest import json_digest
from image_builder.recipe.pins import Deb, Part, PythonPackage
from image_builder.request.again import FIELD
from image_builder.request.build_request import BuildRequest
from image_builder.sources.software_catalogue import PinnedCatalogue
from image_builder.spack import lock_check


class Pins(Part):
    """Names what an earlier build was pinned to, with the identity of its image.

    `lock_digest` is what its identity had of a lockfile, if that was not what Spack decided.
    """

    identity: str
    lock_digest: str | None
    image_id: str
    tree: str
    commit: str | None
    catalogue: PinnedCatalogue
    base: tuple[str, str]
    """The base image, as `FROM` names it, and its digest."""
    runtime: tuple[str, str] | None
    branch_commits: dict[str, str]


class Relock(Part):
    """Holds what a build gets in place of what Spack, apt and pip would choose now.

    `lock` is the text of a `spack.lock`, empty for an image without Spack. `pins` is None for a
    lockfile that a request brings.
    """

    lock: str
    is_foreign: bool
    """The lockfile is a stranger's: nothing that is built from it is shared."""
    debs: tuple[Deb, ...] = ()
    later_debs: tuple[Deb, ...] = ()
    python: tuple[PythonPackage, ...] = ()
    pins: Pins | None = None

    @property
    def digest(self) -> str:
        """Return a digest of what is to be installed."""
        chosen = self.model_dump(mode="json", include={"lock", "debs", "later_debs", "python"})
        return json_digest(chosen)


def brought(request: BuildRequest) -> Relock | None:
    """Return the lockfile that a request brings; None for a request without one."""
    if not isinstance(request.from_lock, dict):
        return None
    return Relock(lock=json.dumps(request.from_lock), is_foreign=True)


def digest_in(identity: str, relock: Relock | None) -> str | None:
    """Return what an identity has of what was to be installed, or None if it has nothing of it."""
    if relock is None:
        return None
    pins = relock.pins
    return pins.lock_digest if pins is not None and pins.identity == identity else relock.digest


def require_fit(relock: Relock, request: BuildRequest, release: tuple[int, ...] | None) -> None:
    """Refuse a lockfile that is not for the machine, or not of the base image's Spack.

    Raises `InvalidRequest`.
    """
    if not relock.lock:
        return
    lock: Mapping[str, Any] = json.loads(relock.lock)
    machine = request.machine
    unfit = lock_check.unfit(
        lock, release=release, platform=machine.platform, target=machine.target.name
    )
    if unfit is not None:
        raise InvalidRequest([FieldProblem(FIELD, *unfit)])
