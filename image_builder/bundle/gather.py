"""Fetches what the steps of a recipe would fetch, each in the stage that it would run in."""

from __future__ import annotations

import re
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any

from image_builder.build import checks, job, stages
from image_builder.build.buildcache.access import open_build_cache
from image_builder.build.context import BuildContext
from image_builder.bundle.manifest import CONFIG, LOCK, PACKAGES, STEP, is_path
from image_builder.errors import BuildFailed, UserError
from image_builder.host.cancellation import CancelToken
from image_builder.plan.render import Rendered, package_cache_of, render_request
from image_builder.recipe.slim import SlimFailed
from image_builder.recipe.stages import (
    BUNDLE_BUILT,
    BUNDLE_DEBS,
    BUNDLE_SOURCES,
    FINAL_STAGE,
    GATHERED_STAGE,
    LOCK_FILE,
)
from image_builder.sources.git import trees
from image_builder.sources.git.trees import Limits
from image_builder.sources.pip_lines import logical_lines
from image_builder.state import BuildState

LIMITS = Limits(max_files=200_000, max_bytes=1024**4)
"""What the site's own trees and what was gathered may have; the step was checked before."""
_FROM_AN_ADDRESS = re.compile(r"^(?!-)[^#]*?(?:@\s*|^)(?:(?:git|hg|svn|bzr)\+|https?://|ftp://)")


def gather(context: BuildContext, *, built: Path | None) -> dict[str, Path]:
    """Concretize, and fetch everything that the build would.

    Return where the bundle's files are on this machine, by their paths in it.

    With `built`, the folder that the settings name as build cache, Spack's packages are built, and
    are part of it. Else an image is built for it only as far as that has to be known: what a slim image needs of the
    full one, and the Python that Spack installs for pip.
    """
    request, inputs, settings = context.request, context.inputs, context.settings
    rendered = render_request(request, inputs, settings, gathers=True)
    for warning in rendered.environment.warnings:
        context.warn(warning)
    require_no_addresses(rendered.environment.requirements)
    stages.fill_context(context, rendered)
    context.observer.entered(BuildState.BUILDING)
    lock: dict[str, Any] = {}
    if rendered.recipe.has_spack:
        lock, _ = job.concretized_lock(context, rendered.environment)
        checks.audit_lock(context, rendered.environment, lock)
        rendered = render_request(request, inputs, settings, lock=lock, gathers=True)
        stages.write_dockerfile(context, rendered)
    _learn_of_slim(context, rendered)
    _say_what_is_missing(context, rendered)
    folder = context.workspace.scratch / "bundle"
    folder.mkdir()
    places: dict[str, Path] = {}
    if built is not None and lock:
        _build_packages(context, rendered, lock, built)
        places = {f"{BUNDLE_BUILT}/{path}": place for path, place in _files(built).items()}
        if not places:
            context.warn("the bundle has no built packages: this build found or shared none.")
    if rendered.recipe.gathered:
        stages.run_stage(context, GATHERED_STAGE, f"type=local,dest={folder}")
    _list_repositories(folder)
    places |= _files(folder)
    places |= _own_files(context, context.workspace.scratch)
    if rendered.recipe.has_spack:
        places[LOCK] = context.workspace.context / LOCK_FILE
    return places


def require_no_addresses(requirements: str | None) -> None:
    """Raise `UserError` for requirements that pip takes from an address, bundle or not."""
    for number, line in logical_lines(requirements or ""):
        if _FROM_AN_ADDRESS.match(line):
            raise UserError(
                f"requirements.txt, line {number}: {line[:100]} comes from an address, which a "
                "build without network cannot ask.",
                hint="Name a version of a package index, or put the project into the step's folder.",
            )


def _build_packages(
    context: BuildContext, rendered: Rendered, lock: dict[str, Any], folder: Path
) -> None:
    """Install, and let the build cache in `folder` have what was installed, as nobody signed it."""
    build = context.settings.build
    cache = open_build_cache(context, rendered.environment, lock)
    stages.run_stage(context, FINAL_STAGE, "type=cacheonly")
    if cache is not None:
        cache.push()
    kept, plain = (
        package_cache_of(context.request, rendered.environment, context.inputs, one, lock)
        for one in (build, build.model_copy(update={"spack_cache_keys": None}))
    )
    folder.mkdir(exist_ok=True)
    if kept is not None and plain is not None and (folder / kept).is_dir():
        shutil.rmtree(folder / kept / "signatures", ignore_errors=True)
        (folder / kept).rename(folder / plain)


def _learn_of_slim(context: BuildContext, rendered: Rendered) -> None:
    """Build the full image of a slim one, whose programs decide which Debian packages it needs."""
    if context.inputs.runtime is None:
        return
    stages.run_stage(context, FINAL_STAGE, "type=cacheonly")
    try:
        job.learn_slim_facts(context, rendered.environment)
    except (SlimFailed, BuildFailed) as error:
        raise UserError(
            f"No slim image can be made of this step: {error.message}",
            hint='Ask for the full one, with "slim": false.',
        ) from error


def _say_what_is_missing(context: BuildContext, rendered: Rendered) -> None:
    if "cic/post_install.sh" in rendered.recipe.files:
        context.warn(
            "the step has a post_inst.sh. What it fetches from servers is not in the bundle, and it "
            "fails without network if it needs that."
        )


def _list_repositories(folder: Path) -> None:
    """Write which repositories of Debian packages there are, as apt reads it in a build step."""
    names = sorted(place.parent.name for place in folder.glob(f"{BUNDLE_DEBS}/*/Packages"))
    lines = [f"deb [trusted=yes] file:/run/cic/bundle/{BUNDLE_DEBS}/{name} ./\n" for name in names]
    if lines:
        (folder / BUNDLE_SOURCES).write_text("".join(lines), "utf-8")


def _files(folder: Path) -> dict[str, Path]:
    """Return the plain files that were gathered. Raises `UserError` for a name that is none."""
    found = {}
    for file in trees.walk(folder, limits=LIMITS):
        if not stat.S_ISREG(file.mode):
            continue
        if not is_path(file.path):
            raise UserError(f"A bundle cannot hold a file named {trees.printable(file.path)!r}.")
        found[file.path] = folder / file.path
    return found


def _own_files(context: BuildContext, scratch: Path) -> dict[str, Path]:
    """Pack the step, the catalogue and the configuration, as they are in the build context."""
    catalogue = context.inputs.catalogue
    wanted = {
        STEP: "step" if context.inputs.step.text is None else None,
        PACKAGES: "catalogue" if catalogue.packages_tree else None,
        CONFIG: "spack-config" if catalogue.config_tree else None,
    }
    places = {}
    for path, folder in wanted.items():
        if folder is not None:
            pack(context.workspace.context / folder, scratch / path, context.cancel)
            places[path] = scratch / path
    return places


def pack(folder: Path, archive: Path, cancel: CancelToken) -> None:
    """Write a folder's files and links to a tar archive that is the same for the same folder."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as packed:
        for entry in trees.read_entries(folder, trees.walk(folder, limits=LIMITS)):
            cancel.check()
            member = tarfile.TarInfo(entry.path)
            member.mtime, member.mode = trees.MTIME_S, entry.mode & 0o777 or 0o777
            if entry.mode == trees.LINK:
                member.type, member.linkname = tarfile.SYMTYPE, entry.target
                packed.addfile(member)
            else:
                member.size = entry.size
                with (folder / entry.path).open("rb") as file:
                    packed.addfile(member, file)
