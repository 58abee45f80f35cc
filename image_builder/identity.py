"""What makes two builds the same. Pure.

The name of an image says what was asked for; its identity says what was built. Two requests with
one identity get one image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from image_builder.request import BuildRequest

IDENTITY_VERSION = 1


def identity_of(
    request: BuildRequest,
    *,
    step_tree: str,
    base_digest: str,
    packages_tree: str | None,
    config_tree: str | None,
    recipe_version: str,
    branch_commits: Mapping[str, str],
    runtime_digest: str | None = None,
) -> str:
    """`sha256:<64 hex>` over everything that decides what is in the image.

    `step_tree`, `packages_tree` and `config_tree` are git tree digests, `branch_commits` the
    commits behind branch versions of specs; `runtime_digest` is that of a slim image's base, and
    None for a full image. The step's name is part of it, since it is a folder in the image; the
    version that was asked for is not, nor are the container engine, `force` and `push`, nor by
    which of its names (`rome`, `zen2`) the target was asked for: they do not change what is built.
    """
    machine = request.machine
    parts = {
        "identity_version": IDENTITY_VERSION,
        "workflow": request.workflow,
        "step_id": request.step_id,
        "step_tree": step_tree,
        "base_digest": base_digest,
        "packages_tree": packages_tree,
        "config_tree": config_tree,
        "recipe_version": recipe_version,
        "branch_commits": dict(branch_commits),
        "platform": machine.platform,
        "target": machine.target.name,
        "mpi": machine.mpi,
        "gpu": machine.gpu,
        "gpu_arch": machine.gpu_arch,
        "slim": runtime_digest,
    }
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
