"""Composes what goes into an image from a step's description and a machine.

Pure: no file, no process. `description.parse_description` reads `eflows4hpc.yaml`, `compose` merges
it with the machine: what the user wrote is kept, and what the machine needs is added as
requirements that Spack must meet.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.docker.base_image import BaseFacts
from image_builder.recipe import compilers, conflicts
from image_builder.recipe.compiler_warnings import compiler_warnings
from image_builder.recipe.demands import demands_in
from image_builder.recipe.excluded import excluded, unbuildable_roots
from image_builder.recipe.externals import externals_warnings
from image_builder.recipe.gpu_conflicts import gpu_rule
from image_builder.recipe.known_packages import package_rule, package_warnings
from image_builder.recipe.machine_fit import machine_fit, require_machine
from image_builder.recipe.other_mpi import other_mpi_warnings
from image_builder.recipe.release_forms import refuse_unread
from image_builder.recipe.spack_yaml import Merge, dump, roots_of
from image_builder.recipe.system_conflicts import (
    compilers_of_groups,
    image_system,
    system_rule,
)
from image_builder.recipe.view import refuse_twice
from image_builder.request import mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.sources.description import Description, parse_description
from image_builder.sources.problems import Problem, raise_all
from image_builder.sources.requirements import Requirements, read_requirements
from image_builder.sources.spec_lists import roots_in
from image_builder.sources.step import StepFolder
from image_builder.spack.knowledge import SpackKnowledge
from image_builder.spack.releases import NEWEST_TESTED

__all__ = ["Description", "Environment", "compose", "parse_description"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """Describes what goes into one image, for one machine.

    `spack` is the body of `spack.yaml` and `spack_yaml` its text; both None when nothing needs
    Spack. `from_source` says that the roots are built from source and their stages kept, for a
    post-install script; `find_externals` that Spack looks for build tools in the base image, since
    the site's configuration names none. `requirements` is a pip requirements file, and
    `requirements_in_step` says that it names files of the step's folder. `mpi`, `gpu` and
    `gpu_arch` are what the request means, as Spack calls it (`openmpi@4`, `cuda@12`, `90`);
    packages in `without_gpu` are built without it. `has_view` False: there is no view to link into.
    """

    target: str
    apt: tuple[str, ...] = ()
    requirements: str | None = None
    requirements_in_step: bool = False
    spack: Mapping[str, Any] | None = None
    spack_yaml: str | None = None
    roots: tuple[str, ...] = ()
    mpi: str | None = None
    gpu: str | None = None
    gpu_arch: str | None = None
    without_gpu: tuple[str, ...] = ()
    has_view: bool = True
    from_source: bool = False
    find_externals: bool = True
    smoke: tuple[str, ...] | None = None
    slim: bool | None = None
    warnings: tuple[str, ...] = ()


def compose(
    description: Description,
    machine: Machine,
    *,
    base: BaseFacts,
    requirements: str | None = None,
    step: StepFolder | None = None,
    has_post_install: bool = False,
    site_packages: Mapping[str, Any] | None = None,
    knows: SpackKnowledge | None = None,
) -> Environment:
    """Return what an image of `description` for `machine` holds on the base image `base`.

    `requirements` is the text of the step's `requirements.txt`, `step` what else its folder holds,
    `site_packages` the `packages` of the site's own Spack configuration, and `knows` what the base
    image's Spack knows. Raises `BadDescription` (`CONFLICT`) where workflow and machine exclude
    each other, `InvalidRequest` for an MPI or GPU that cannot be built, and `UserError`
    (`COMPILER_TOO_OLD`).
    """
    mpi = mpi_gpu.mpi_of(machine, base.spack_version)
    gpu = mpi_gpu.gpu_of(machine)
    packages = [site_packages or {}, (description.spack or {}).get("packages") or {}]
    require_machine(machine, mpi, gpu, knows, packages)
    _check_apt(description, machine)
    needed = _requirements(description, requirements, step, is_final=not has_post_install)
    plain = Environment(
        target=machine.target.name,
        apt=description.apt,
        requirements=_pip_text(description, needed),
        requirements_in_step=needed is not None and needed.in_step,
        mpi=mpi.spec if mpi else None,
        gpu=gpu.spec if gpu else None,
        gpu_arch=gpu.arch if gpu else None,
        smoke=description.smoke,
        slim=description.slim,
        warnings=(
            *description.warnings,
            *(needed.warnings if needed is not None else ()),
            *_unused_requirements(description, requirements),
            *other_mpi_warnings(description, needed, mpi),
        ),
    )
    if not ((description.spack or {}).get("specs") or mpi or gpu):
        return dataclasses.replace(
            plain, warnings=(*plain.warnings, *_unused(description, machine))
        )
    release = base.spack_version or NEWEST_TESTED
    body = description.spack or {}
    refuse_unread(description, release)
    roots = roots_in(body, release)
    demands = demands_in(body, roots, release)
    built = compilers_of_groups(body, release)
    image = image_system(base, description.apt, packages, knows, built)
    rules = (
        gpu_rule(gpu),
        system_rule(image, release),
        package_rule(knows, release),
        conflicts.interface_rule(knows, mpi),
    )
    kept_out, may_be_missing = unbuildable_roots(description, site_packages or {}, roots, knows)
    kept_out += excluded(description, site_packages or {}, (mpi, gpu), knows)
    yielding = conflicts.refuse(description, demands, machine, mpi, gpu, rules, kept_out)
    fit = machine_fit(demands, machine.target.name, mpi, gpu, image, knows)
    refuse_twice(description, roots)
    named = compilers.named(conflicts.compilers_named(body))
    compilers.check_target(
        machine.target, named + compilers.available(base.compilers, description.apt)
    )
    merge = Merge(
        description, machine, mpi, gpu, release, site_packages or {}, demands, fit.required
    )
    merged = merge.body()
    if named and not any(compilers.can_make(machine.target.name, *compiler) for compiler in named):
        merge.warnings.append(
            f"{description.file}: the compiler that it prefers cannot make code for "
            f"{machine.target.name}; Spack takes another."
        )
    if base.spack_version is None:
        merge.warnings.append(
            "Which Spack the base image has is not known; the environment is written for "
            f"{'.'.join(map(str, NEWEST_TESTED))}."
        )
    return dataclasses.replace(
        plain,
        spack=merged,
        spack_yaml=dump({"spack": merged}),
        roots=tuple(roots_of(merged)),
        without_gpu=tuple(dict.fromkeys([*merge.without_gpu, *fit.without_gpu])),
        has_view=merged["view"] is not False,
        from_source=has_post_install,
        find_externals=not _has_externals(site_packages or {}),
        warnings=(
            *plain.warnings,
            *yielding,
            *may_be_missing,
            *fit.warnings,
            *compiler_warnings(description, image),
            *package_warnings(description, release, knows),
            *externals_warnings(description, body),
            *merge.warnings,
        ),
    )


def _requirements(
    description: Description, text: str | None, step: StepFolder | None, *, is_final: bool
) -> Requirements | None:
    """Return what the step's `requirements.txt` names, unless the description names its own."""
    if description.pip is not None or text is None:
        return None
    return read_requirements(text, step, is_final=is_final, apt=description.apt)


def _pip_text(description: Description, needed: Requirements | None) -> str | None:
    if description.pip is not None:
        return "\n".join(description.pip) + "\n" if description.pip else None
    return needed.text if needed is not None else None


def _unused_requirements(description: Description, text: str | None) -> Iterator[str]:
    if description.pip is not None and text is not None and text.strip():
        line = description.line("pip")
        yield f"requirements.txt is not used: {description.file}, line {line}, has pip"


def _check_apt(description: Description, machine: Machine) -> None:
    """Refuse a package of another architecture, which apt does not find."""
    own = _DEBIAN.get(machine.platform)
    raise_all(
        (
            Problem(
                description.line("apt", at) or 1,
                f"apt[{at}] names a package for {match[1]}, and the image is for {machine.platform}",
                f"Write {entry.replace(f':{match[1]}', '', 1)}.",
            )
            for at, entry in enumerate(description.apt)
            if own and (match := re.search(r":([a-z0-9-]+)(?==|\Z)", entry.partition("=")[0]))
            if match[1] not in (own, "all", "any", "native")
        ),
        description.file,
    )


_DEBIAN = {
    "linux/amd64": "amd64",
    "linux/arm64": "arm64",
    "linux/ppc64le": "ppc64el",
    "linux/riscv64": "riscv64",
}
"""Debian's name of each platform's architecture."""


def _has_externals(packages: Mapping[str, Any]) -> bool:
    return any(fields.get("externals") for fields in packages.values())


def _unused(description: Description, machine: Machine) -> Iterator[str]:
    if description.spack:
        yield f"{description.file}: spack names no specs, so that nothing is installed by Spack"
    if machine.gpu_arch:
        yield "machine.gpu_arch is not used: machine.gpu names no GPU runtime"
