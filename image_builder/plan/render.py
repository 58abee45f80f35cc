"""Renders the recipe of a request and its pinned inputs. Nothing is built here."""

from __future__ import annotations

import dataclasses
from typing import Any

from image_builder.plan import buildcache_policy, identity, steps
from image_builder.plan.inputs import Inputs
from image_builder.plan.knowledge import SpackSite, names_in
from image_builder.plan.relock import Relock
from image_builder.recipe.base_image import render_base
from image_builder.recipe.dockerfile import Recipe, RecipeOptions, render
from image_builder.recipe.environment import Environment, compose
from image_builder.request.build_request import BuildRequest
from image_builder.settings import BuildSettings, LibrarySettings
from image_builder.sources.description import parse_description
from image_builder.spack import lockfile, releases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
    """Holds the environment that a description becomes for the machine, and its recipe."""

    environment: Environment
    recipe: Recipe

    def documents(self, lock: str | None) -> dict[str, str]:
        """Return what the image is made of, as it also is in the image below `/opt/cic`."""
        record = "cic/record/"
        files = {
            name.removeprefix(record): text
            for name, text in self.recipe.files.items()
            if name.startswith(record)
        }
        files["Dockerfile"] = self.recipe.dockerfile
        if self.environment.spack_yaml is not None:
            files["spack.yaml"] = self.environment.spack_yaml
        if lock:
            files[lockfile.FILE] = lock
        return files


def render_request(
    request: BuildRequest,
    inputs: Inputs,
    settings: LibrarySettings,
    *,
    lock: dict[str, Any] | None = None,
    gathers: bool = False,
) -> Rendered:
    """Return the recipe for pinned inputs; with a lockfile, the recipe of the install.

    The install may use a cache. A recipe that `gathers` has stages that fetch what a bundle holds.
    Raises `BadDescription` when the description cannot be used for
    this machine.
    """
    if request.is_base:
        dockerfile, context_files = render_base(
            inputs.base.reference, has_packages=inputs.catalogue.packages_tree is not None
        )
        return Rendered(
            environment=Environment(target=request.machine.target.name),
            recipe=Recipe(
                version=inputs.recipe_version,
                dockerfile=dockerfile,
                files=context_files,
                has_spack=False,
            ),
        )
    files = steps.read_step(inputs.step, settings)
    description = parse_description(files.description, files.description_file)
    site = SpackSite.of(inputs.base, steps.open_catalogue(settings), inputs.catalogue, settings)
    knows, unknown = site.ask(names_in(request, description))
    environment = compose(
        description,
        request.machine,
        base=inputs.base,
        requirements=files.requirements,
        step=files.folder,
        has_post_install=files.has_post_install,
        site_packages=site.packages,
        knows=knows,
    )
    if unknown and environment.spack is not None:
        environment = dataclasses.replace(environment, warnings=(*environment.warnings, unknown))
    recipe = render(
        environment,
        request=request,
        description=description,
        base=inputs.base,
        options=RecipeOptions(
            has_catalogue=inputs.catalogue.packages_tree is not None,
            has_spack_config=inputs.catalogue.config_tree is not None,
            has_post_install=files.has_post_install,
            sources_folder=settings.build.spack_mirror_folder is not None,
            package_cache=package_cache_of(request, environment, inputs, settings.build, lock),
            solver_cache=solver_cache_of(request, environment, inputs, settings.build),
            parallel=not releases.installs_in_parallel(inputs.base.spack_version),
            fewer=releases.solves_with_fewer(inputs.base.spack_version),
            autopush=not releases.pushes_by_itself(inputs.base.spack_version),
            packages_folder=settings.build.has_package_place,
            bundle=inputs.bundle is not None,
            gathers=gathers,
            python_is_installed=_has_python(lock),
            **_relocked(inputs.relock),
        ),
        runtime=inputs.runtime,
    )
    return Rendered(environment=environment, recipe=recipe)


def _has_python(lock: dict[str, Any] | None) -> bool:
    nodes = (lock or {}).get("concrete_specs", {}).values()
    return any(node.get("name") == "python" and not node.get("external") for node in nodes)


def _relocked(relock: Relock | None) -> dict[str, Any]:
    """Return what a recipe is told to install in place of what there is now."""
    if relock is None:
        return {}
    if relock.pins is None:
        return {"relocked": True}
    return {
        "relocked": bool(relock.lock),
        "debs": relock.debs,
        "later_debs": relock.later_debs,
        "python": relock.python,
    }


def solver_cache_of(
    request: BuildRequest, environment: Environment, inputs: Inputs, settings: BuildSettings
) -> str | None:
    """Return the mount with what Spack solved before, or None if this build takes no part in it.

    It is for a Spack that has such a cache, and an environment that runs no program of its own
    while it is concretized.
    """
    version = inputs.base.spack_version
    if (
        settings.spack_cache == "none"
        or not releases.keeps_solutions(version)
        or buildcache_policy.incompatibility(environment, {}, version) is not None
    ):
        return None
    return identity.solver_cache_name(inputs, request.machine.platform)


def package_cache_of(
    request: BuildRequest,
    environment: Environment,
    inputs: Inputs,
    build: BuildSettings,
    lock: dict[str, Any] | None,
) -> str | None:
    """Return the cache of built packages that an install of `lock` may use, or None."""
    if (
        not lock
        or (inputs.relock is not None and inputs.relock.is_foreign)
        or build.spack_cache == "none"
        or buildcache_policy.incompatibility(environment, lock, inputs.base.spack_version)
        is not None
    ):
        return None
    return identity.cache_name(
        environment,
        inputs,
        request.machine.platform,
        are_signed=build.spack_cache_keys is not None,
    )
