"""Renders an environment as a Dockerfile and the other files of the build context.

Pure: no process, and no file but the recipe's own. The Dockerfile contains no value that a
description chose: those are in files that the scripts read. It contains nothing of the site either:
its CA and number of jobs are files of the build context, and its mirrors come as build secrets,
which are part of no layer and no key.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path

import jinja2

from image_builder.docker.base_image import BaseFacts
from image_builder.errors import Misconfigured
from image_builder.recipe import pins, slim
from image_builder.recipe.environment import Environment
from image_builder.recipe.externals import externals_list
from image_builder.recipe.pins import Deb, PythonPackage
from image_builder.recipe.stages import (
    BUNDLE_CONTEXT,
    LATEST_RECIPE,
    PACKAGES_CONTEXT,
    SITE_SECRET,
    SOURCES_CONTEXT,
)
from image_builder.recipe.view import VIEW
from image_builder.request.build_request import BuildRequest
from image_builder.settings import BuildSettings
from image_builder.sources.description import Description

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*\Z")
_TEMPLATE = "Dockerfile.j2"
_SCRIPTS = ("lib.sh", "entrypoint")
_SLIM_SCRIPTS = (
    "apt.sh",
    "collect.sh",
    "collect.py",
    "accounts.py",
    "closure.py",
    "runtime.sh",
    "settle.sh",
    "verify.sh",
    "verify.py",
)
_SPACK_SCRIPTS = (
    "tools.sh",
    "site_tools.sh",
    "concretize.sh",
    "install.sh",
    "packages.py",
    "parallel.py",
    "autopush.py",
    "exchange.sh",
    "stages.py",
    "activation.py",
    "even.py",
)
_GATHERING_SCRIPTS = ("apt.sh", "gather_debs.sh", "gather_wheels.sh", "gather_sources.sh")

_SECRET = re.compile(r"--mount=type=secret,id=(?P<id>\w+),[^ ]* \\\n *")
_STEP = re.compile(r'^ *(\["sh", "/run/cic/[^\n]*\])$', re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Says what the build context holds in addition to what `render` makes."""

    has_catalogue: bool = False
    """`catalogue/`: the site's packages."""
    has_spack_config: bool = False
    """`spack-config/`: the site's Spack configuration."""
    has_post_install: bool = False
    """`step/post_inst.sh`."""
    sources_folder: bool = False
    """A Spack source mirror comes as the build context `SOURCES_CONTEXT`."""
    package_cache: str | None = None
    """The cache mount of built packages, for the install step."""
    solver_cache: str | None = None
    """The cache mount of what Spack solved, for the step that concretizes."""
    parallel: bool = False
    """The base image's Spack does not build packages side by side within its jobs by itself."""
    fewer: bool = False
    """The base image's Spack may concretize with the packages alone that a solution may hold."""
    autopush: bool = False
    """The base image's Spack does not push packages by itself as they are built."""
    packages_folder: bool = False
    """Packages go from and to a folder of the site."""
    bundle: bool = False
    """What the steps fetch comes as the build context `BUNDLE_CONTEXT`, and from nowhere else."""
    gathers: bool = False
    """There are stages that fetch what the steps do, for a bundle."""
    python_is_installed: bool = False
    """Spack installs the Python that pip runs on."""
    relocked: bool = False
    """Spack installs a lockfile that the build context has, and decides nothing."""
    debs: tuple[Deb, ...] | None = None
    """The Debian packages to install in these versions; None for those that there are now."""
    later_debs: tuple[Deb, ...] = ()
    """Those that steps after apt's may install."""
    python: tuple[PythonPackage, ...] | None = None
    """The Python packages to install by their digests; None for those that there are now."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Holds a rendered recipe: `dockerfile`, and the other `files` of the build context."""

    version: str
    dockerfile: str
    files: Mapping[str, str]
    has_spack: bool
    gathered: tuple[str, ...] = ()
    """The kinds of what its steps fetch, where it has stages that gather them."""


def render(
    environment: Environment,
    *,
    request: BuildRequest,
    description: Description,
    base: BaseFacts,
    options: RecipeOptions,
    runtime: BaseFacts | None = None,
) -> Recipe:
    """Return the recipe of `environment` for `request`, built on `base.reference`.

    With `runtime`, it is the recipe of a slim image on that. Raises `Misconfigured` for a base
    image whose name is not valid. The step's name, the only other value that the template puts into
    the Dockerfile apart from the base image's own environment, labels and folder, was checked when
    the request was parsed.
    """
    _check_reference(base, "base_image")
    if runtime is not None:
        _check_reference(runtime, "runtime_base_image")
    has_spack = environment.spack_yaml is not None
    gathered = _gathered(environment, has_runtime=runtime is not None) if options.gathers else ()
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    ).from_string(_read(LATEST_RECIPE, _TEMPLATE))
    dockerfile = template.render(
        base=base.reference,
        step_id=request.step_name,
        recipe_version=LATEST_RECIPE,
        view=VIEW,
        sources_context=SOURCES_CONTEXT,
        has_spack=has_spack,
        has_apt=bool(environment.apt),
        has_dpkg=base.has_dpkg,
        has_externals=has_spack and bool(externals_list(description)),
        has_requirements=environment.requirements is not None,
        has_catalogue=options.has_catalogue,
        has_spack_config=options.has_spack_config,
        find_externals=environment.find_externals,
        sources_folder=options.sources_folder,
        package_cache=options.package_cache or "",
        solver_cache=options.solver_cache or "",
        parallel=options.parallel,
        fewer=options.fewer,
        autopush=options.autopush,
        packages_folder=options.packages_folder,
        packages_context=PACKAGES_CONTEXT,
        bundle=options.bundle,
        bundle_context=BUNDLE_CONTEXT,
        gathers=options.gathers,
        gathered=gathered,
        python_is_installed=options.python_is_installed,
        relocked=options.relocked,
        apt_pins=[pins.APT_PINS, pins.APT_VERSIONS] if options.debs is not None else [],
        pip_pins=[pins.PIP_PINS, pins.APT_PINS] if options.python is not None else [],
        from_source=environment.from_source,
        has_post_install=options.has_post_install,
        requirements_in_step=environment.requirements_in_step,
        runtime=runtime.reference if runtime is not None else None,
        variables=slim.variables(base),
        labels=slim.labels(base),
        folder=slim.folder(base),
        sources_before_pip=options.has_post_install or environment.requirements_in_step,
    )
    return Recipe(
        version=LATEST_RECIPE,
        dockerfile=dockerfile,
        has_spack=has_spack,
        gathered=gathered,
        files=_files(environment, request, description, options, has_spack, runtime is not None),
    )


def _gathered(environment: Environment, *, has_runtime: bool) -> tuple[str, ...]:
    """Return the kinds of what a recipe's steps fetch; each has a stage that gathers it."""
    kinds = {
        "system": bool(environment.apt),
        "runtime": has_runtime,
        "wheels": environment.requirements is not None,
        "sources": environment.spack_yaml is not None,
    }
    return tuple(kind for kind, is_there in kinds.items() if is_there)


def packages_program() -> AbstractContextManager[Path]:
    """Yield the path of the recipe's program that copies built packages."""
    return resources.as_file(
        resources.files("image_builder").joinpath(f"recipes/{LATEST_RECIPE}/packages.py")
    )


def site_secrets(settings: BuildSettings) -> dict[str, str]:
    """Return the texts of the build secrets that lend a step what it needs of the site, by id.

    No layer keeps them. What the site lends nothing of is missing. A proxy's address that holds a
    password is among those of the steps that run no description's code; another is a build argument
    of every step (`buildx`).
    """
    proxies = {} if settings.has_plain_proxies else settings.proxies
    mirror = None if settings.spack_mirror_folder else settings.spack_mirror
    lent: dict[str, dict[str, str | None]] = {
        "apt": {"apt_mirror": settings.apt_mirror, **proxies},
        "spack": {"spack_mirror": mirror, **proxies},
        "pip": {"pip_index_url": settings.pip_index_url},
        "base": {"pip_index_url": settings.pip_index_url, **proxies},
    }
    texts = {f"{SITE_SECRET}{step}": _site_text(values) for step, values in lent.items()}
    return {name: text for name, text in texts.items() if text}


def without_unused_secrets(dockerfile: str, used: Collection[str]) -> str:
    """Return a rendered recipe without the mounts of secrets that a build does not give.

    BuildKit 0.13, of Docker 26, reads the whole file system of a step that mounts a secret before
    it starts (docker/buildx #2361): of an image of 0.9 GB, each such step began 4 s later.
    """
    return _SECRET.sub(lambda mount: mount[0] if mount["id"] in used else "", dockerfile)


def _site_text(values: Mapping[str, str | None]) -> str:
    for name, value in values.items():
        if value and re.search(r"[\s\"\\]", value):
            raise Misconfigured(
                f"{name} holds a space, quote or line end.", hint="Write a plain URL."
            )
    return "".join(f"{name}={value}\n" for name, value in values.items() if value)


def _check_reference(base: BaseFacts, key: str) -> None:
    if not _REFERENCE.match(base.reference):
        raise Misconfigured(
            f"The base image's name {base.reference[:100]!r} is not an image reference.",
            hint=f"Correct {key} in build_cfg.",
        )


def step_commands(dockerfile: str) -> set[tuple[str, ...]]:
    """Return the commands that a rendered recipe's steps run, as the kernel shows them."""
    return {tuple(json.loads(command)) for command in _STEP.findall(dockerfile)}


def _files(
    environment: Environment,
    request: BuildRequest,
    description: Description,
    options: RecipeOptions,
    has_spack: bool,
    is_slim: bool,
) -> dict[str, str]:
    scripts = {
        *_SCRIPTS,
        *(_SPACK_SCRIPTS if has_spack else ()),
        *(_SLIM_SCRIPTS if is_slim else ()),
    }
    if has_spack and is_slim:
        scripts |= {"kept.sh", "kept.py"}
    if options.gathers:
        scripts |= set(_GATHERING_SCRIPTS)
    files = {
        "cic/record/description.yaml": description.text,
        "cic/record/request.json": _request_text(request),
    }
    if environment.apt:
        scripts.add("apt.sh")
        files["cic/packages.apt"] = "".join(f"{package}\n" for package in environment.apt)
    if environment.requirements is not None:
        scripts |= {"pip.sh", "used.py"}
        files["cic/requirements.txt"] = environment.requirements
    if environment.spack_yaml is not None:
        files["cic/spack.yaml"] = environment.spack_yaml
        if externals := externals_list(description):
            files["cic/externals"] = externals
    if options.has_post_install:
        scripts.add("post_install.sh")
    if options.fewer and has_spack:
        scripts.add("fewer_packages.py")
    if options.relocked:
        scripts |= {"relock.sh", "relock.py"}
    files |= _pin_files(options)
    return {**{f"cic/{name}": _read(LATEST_RECIPE, name) for name in sorted(scripts)}, **files}


def _pin_files(options: RecipeOptions) -> dict[str, str]:
    """Return what tells apt and pip which versions to take."""
    files = {}
    if options.debs is not None:
        files[pins.APT_PINS] = pins.apt_preferences(options.debs + options.later_debs)
        files[pins.APT_VERSIONS] = pins.apt_versions(options.debs)
    if options.python is not None:
        files[pins.PIP_PINS] = pins.pip_files(options.python)
    return {f"cic/{name}": text for name, text in files.items()}


def _request_text(request: BuildRequest) -> str:
    """Return what the image is for: the request without what only says how to build it."""
    return json.dumps(request.image_fields(), indent=2, sort_keys=True) + "\n"


def _read(version: str, name: str) -> str:
    return resources.files("image_builder").joinpath(f"recipes/{version}/{name}").read_text("utf-8")
