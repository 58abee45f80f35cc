"""From a step's description and a machine to what goes into the image. Pure: no file, no process.

`description.parse_description` reads `eflows4hpc.yaml`, `compose` merges it with the machine: what
the user wrote is kept, and what the machine needs is added as requirements that Spack must meet.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.docker.base_image import BaseFacts
from image_builder.errors import BadDescription
from image_builder.recipe import compilers, conflicts
from image_builder.recipe.spack_yaml import Merge, dump, roots_of
from image_builder.request import mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.sources.description import Description, parse_description

__all__ = ["Description", "Environment", "compose", "parse_description"]
NEWEST_TESTED = (1, 1)
"""The Spack release that an environment is made for where the base image's own is not known."""
_LOCAL_REQUIREMENT = re.compile(
    r"\s*(?:-(?:r|c|e|f)\b|--(?:requirement|constraint|editable|find-links)\b|\.{0,2}/|"
    r"\.\s*$|\.\[|[^#;]*@\s*file:|[^#;\s]+\.(?:whl|tar\.gz|zip)\s*$)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """What goes into one image, for one machine.

    `spack` is the body of `spack.yaml` and `spack_yaml` its text; both None when nothing needs
    Spack. `from_source` says that the roots are built from source and their stages kept, for a
    post-install script; `find_externals` that Spack looks for build tools in the base image, since
    the site's configuration names none. `requirements` is a pip requirements file, and
    `requirements_in_step` says that it names files of the step's folder. `mpi`, `gpu` and
    `gpu_arch` are what the request means, as Spack calls it (`openmpi@4`, `cuda@12`, `90`).
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
    has_post_install: bool = False,
    site_packages: Mapping[str, Any] | None = None,
) -> Environment:
    """What an image of `description` for `machine` holds, on a base image of which `base` is known.

    `requirements` is the text of the `requirements.txt` beside the description, `site_packages` the
    `packages` of the site's own Spack configuration. Raises `BadDescription` (`CONFLICT`) where
    workflow and machine cannot both hold, `InvalidRequest` for an MPI or GPU that nobody knows, and
    `UserError` (`COMPILER_TOO_OLD`).
    """
    mpi = mpi_gpu.mpi_of(machine, base.spack_version)
    gpu = mpi_gpu.gpu_of(machine)
    pip_text, pip_in_step = _requirements(description, requirements)
    plain = Environment(
        target=machine.target.name,
        apt=description.apt,
        requirements=pip_text,
        requirements_in_step=pip_in_step,
        mpi=mpi.spec if mpi else None,
        gpu=gpu.spec if gpu else None,
        gpu_arch=gpu.arch if gpu else None,
        smoke=description.smoke,
        slim=description.slim,
        warnings=description.warnings,
    )
    if not ((description.spack or {}).get("specs") or mpi or gpu):
        return dataclasses.replace(
            plain, warnings=(*plain.warnings, *_unused(description, machine))
        )
    conflicts.refuse(description, machine, mpi, gpu)
    named = compilers.named(conflicts.compilers_named(description.spack or {}))
    compilers.check_target(
        machine.target, named + compilers.available(base.compilers, description.apt)
    )
    merge = Merge(
        description, machine, mpi, gpu, base.spack_version or NEWEST_TESTED, site_packages or {}
    )
    body = merge.body()
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
        spack=body,
        spack_yaml=dump({"spack": body}),
        roots=tuple(roots_of(body)),
        from_source=has_post_install,
        find_externals=not _has_externals(site_packages or {}),
        warnings=(*plain.warnings, *merge.warnings),
    )


def _requirements(description: Description, beside: str | None) -> tuple[str | None, bool]:
    if description.pip is not None:
        return ("\n".join(description.pip) + "\n" if description.pip else None), False
    if beside is None or not beside.strip():
        return None, False
    if "\0" in beside:
        raise BadDescription(
            "holds a NUL character", file="requirements.txt", hint="Save the file as plain text."
        )
    return beside, any(map(_LOCAL_REQUIREMENT.match, beside.splitlines()))


def _has_externals(packages: Mapping[str, Any]) -> bool:
    return any(fields.get("externals") for fields in packages.values())


def _unused(description: Description, machine: Machine) -> Iterator[str]:
    if description.spack:
        yield f"{description.file}: spack names no specs, so that nothing is installed by Spack"
    if machine.gpu_arch:
        yield "machine.gpu_arch is not used: machine.gpu names no GPU runtime"
