"""Decides what makes two builds the same. Pure.

The name of an image says what was asked for; its identity says what was built. Two requests with
one identity get one image.
"""

from __future__ import annotations

from collections.abc import Mapping

from image_builder.plan.digest import json_digest
from image_builder.plan.inputs import Inputs
from image_builder.recipe.environment import Environment
from image_builder.request.build_request import BuildRequest

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
    lock_digest: str | None = None,
) -> str:
    """Return `sha256:<64 hex>` over everything that decides what is in the image.

    `step_tree`, `packages_tree` and `config_tree` are git tree digests, `branch_commits` the
    commits behind branch versions of specs; `runtime_digest` is that of a slim image's base, and
    None for a full image; `lock_digest` is that of a lockfile, and of packages, that a request
    brings, and None where Spack decides. The step's name is part of it, since it is a folder in the image; the
    requested version is not, nor are the container engine, `force` and `push`, nor by which of its
    names (`rome`, `zen2`) the target is requested: they do not change what is built.
    """
    machine = request.machine
    parts = {
        "identity_version": IDENTITY_VERSION,
        "workflow": request.workflow_name,
        "step_id": request.step_name,
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
        **({} if lock_digest is None else {"lock": lock_digest}),
    }
    return "sha256:" + json_digest(parts)


CONCRETIZATION_VERSION = 1


def concretization_key(environment: Environment, inputs: Inputs, platform: str) -> str:
    """Return a key over everything that decides how Spack concretizes an environment."""
    parts = {
        "locks_version": CONCRETIZATION_VERSION,
        "spack_yaml": environment.spack_yaml,
        "apt": environment.apt,
        "platform": platform,
        "base": inputs.base.digest,
        "packages": inputs.catalogue.packages_tree,
        "config": inputs.catalogue.config_tree,
        "externals": environment.find_externals,
        "branches": inputs.branch_commits,
        "recipe": inputs.recipe_version,
    }
    return json_digest(parts)


def solver_cache_name(inputs: Inputs, platform: str) -> str:
    """Return the name of the mount in which Spack itself keeps what it solved.

    Spack finds a solution by the text of the problem, which covers all that the solution depends
    on, except the base image's solver.
    """
    parts = {"platform": platform, "base": inputs.base.digest, "recipe": inputs.recipe_version}
    return "cic-solver-" + json_digest(parts)[:24]


CACHE_VERSION = 1


def cache_name(
    environment: Environment, inputs: Inputs, platform: str, *, are_signed: bool = False
) -> str:
    """Return the name of the mount that builds share, over all that binaries depend on.

    Beyond Spack's own hashes these are the base image (operating system, compilers, Spack and its
    packages), the Debian packages that were installed on it, the site's Spack configuration, and
    the recipe. Packages that are pulled only with a signature have a mount of their own.
    """
    parts = {
        "cache_version": CACHE_VERSION,
        "platform": platform,
        "target": environment.target,
        "spack": inputs.base.spack_version,
        "base": inputs.base.digest,
        "apt": sorted(environment.apt),
        "config": inputs.catalogue.config_tree,
        "externals": environment.find_externals,
        "recipe": inputs.recipe_version,
        **({"signed": True} if are_signed else {}),
    }
    return "cic-spack-" + json_digest(parts)[:24]
