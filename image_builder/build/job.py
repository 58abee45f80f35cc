"""Builds one image from pinned inputs: concretized, checked, installed and checked again.

`stages` runs the recipe, `checks` compares the results with the request, `publish` pushes and
stores the image; `pipeline` says what happens before and after.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from image_builder.audit.image_facts.facts import DOCUMENT as FACTS_DOCUMENT
from image_builder.audit.lock_audit import Verdict
from image_builder.build import checks, evidence, scan, stages, used
from image_builder.build.buildcache.access import open_build_cache
from image_builder.build.context import BuildContext, Built
from image_builder.docker import daemon
from image_builder.docker.isolation import check
from image_builder.docker.label_names import SLIM
from image_builder.errors import BuildFailed, UserError
from image_builder.host.text_cache import TextCache
from image_builder.host.workspace import require_free_space
from image_builder.plan.identity import concretization_key
from image_builder.plan.render import Rendered, render_request
from image_builder.proof import materials, sarif
from image_builder.recipe import slim, slim_facts
from image_builder.recipe.environment import Environment
from image_builder.recipe.labels import image_labels
from image_builder.recipe.slim import SlimFailed
from image_builder.recipe.stages import (
    DEBUG_STAGE,
    FACTS_FOLDER,
    FACTS_STAGE,
    FINAL_STAGE,
    LOCK_FILE,
    REPORT_FILE,
    REPORT_STAGE,
    SLIM_STAGE,
)
from image_builder.sif import convert
from image_builder.sif.begun import BegunSif
from image_builder.spack.install_progress import packages_to_install
from image_builder.state import BuildState
from image_builder.store.image_store import Images
from image_builder.timeline import origins

MAX_LOCKS = 2000
"""So many lockfiles are kept, so that Spack need not concretize the same inputs again."""


def build_debug_image(context: BuildContext) -> str:
    """Build the stage before concretization, with the recipe's files in it, and return its id."""
    rendered = render_request(context.request, context.inputs, context.settings)
    if not rendered.recipe.has_spack:
        raise UserError("This request needs no Spack: there is nothing to debug.")
    stages.fill_context(context, rendered)
    return stages.build_stage(context, DEBUG_STAGE, {})


def build(context: BuildContext, store: Images) -> Built:
    """Concretize, compare the result with the request, then install; the image has no name yet."""
    with context.step("prepare"):
        check.require(
            context.settings.build, base_image=context.inputs.base.reference, cancel=context.cancel
        )
        rendered = render_request(context.request, context.inputs, context.settings)
        for warning in rendered.environment.warnings:
            context.warn(warning)
        stages.fill_context(context, rendered)
    context.cancel.check()
    context.observer.entered(BuildState.BUILDING)
    if rendered.recipe.has_spack:
        built, lock, rendered = _with_spack(context, rendered)
    else:
        built, lock = _Install(context, rendered.environment, {}, None).build(), {}
    built = scan.scanned(context, built)
    documents = {
        **rendered.documents(json.dumps(lock) if lock else None),
        FACTS_DOCUMENT: built.facts or None,
        sarif.FILE: built.scan_document,
        materials.FILE: None,
        origins.FILE: origins.document(lock, context.log.packages.values()) if lock else None,
        **evidence.documents(context, built),
        **used.documents(context, built, lock),
    }
    store.keep_documents(context.identity, documents)
    return dataclasses.replace(built, warnings=(*rendered.environment.warnings, *built.warnings))


def _with_spack(
    context: BuildContext, rendered: Rendered
) -> tuple[Built, dict[str, Any], Rendered]:
    """Return the image, its lockfile, and the recipe for what is then known to be installed."""
    environment = rendered.environment
    lock, is_new = concretized_lock(context, environment)
    verdict = checks.audit_lock(context, environment, lock)
    rendered = render_request(context.request, context.inputs, context.settings, lock=lock)
    stages.write_dockerfile(context, rendered)
    build_cache = open_build_cache(context, environment, lock)
    if build_cache is not None:
        with context.step("pull from the build cache"):
            build_cache.pull(again=not is_new)
    try:
        built = _Install(context, rendered.environment, lock, verdict).build()
    except BuildFailed:  # an earlier concretization may name what is not there any more
        if context.inputs.relock is not None:
            raise
        _locks(context).forget(_key(context, environment))
        raise
    finally:
        if build_cache is not None and not context.cancel.is_set:
            with context.step("push to the build cache"):
                build_cache.push()
    return built, lock, rendered


def concretized_lock(
    context: BuildContext, environment: Environment
) -> tuple[dict[str, Any], bool]:
    """Return the lockfile, and whether it is new; it is in the build context afterwards.

    It is what a request builds again, or that of the inputs, or kept from the same inputs, or
    concretized now.
    """
    if context.inputs.relock is not None:
        return _relocked(context, context.inputs.relock.lock), True
    text, is_new = context.inputs.lock, True
    if text is not None:
        context.observer.line("The bundle's spack.lock is used.")
    else:
        text, is_new = _kept_or_concretized(context, environment)
    lock = json.loads(text)
    # As the documents have it: whoever builds from that text gets the same file in the image.
    context.workspace.write_context({LOCK_FILE: json.dumps(lock)})
    return lock, is_new


def _kept_or_concretized(context: BuildContext, environment: Environment) -> tuple[str, bool]:
    """Return the text of a lockfile, and whether it is new: what Spack makes now is kept."""
    locks, key = _locks(context), _key(context, environment)
    known = None if context.request.force else locks.get(key)
    if known is not None:
        context.observer.line("The same was concretized before: its spack.lock is used.")
        return known, False
    with context.step("concretize"):
        text = stages.concretize(context)
    locks.keep(key, text)
    return text, True


def _locks(context: BuildContext) -> TextCache:
    folder = context.settings.build.tmp_folder / "cache" / "locks"
    return TextCache(folder, ".lock", most=MAX_LOCKS)


def _relocked(context: BuildContext, text: str) -> dict[str, Any]:
    """Return a lockfile that is installed as it is, once Spack agrees with its hashes."""
    context.workspace.write_context({LOCK_FILE: text})
    context.observer.line("Spack decides nothing: a spack.lock is given, and checked now.")
    lock: dict[str, Any] = json.loads(stages.concretize(context))
    return lock


def _key(context: BuildContext, environment: Environment) -> str:
    return concretization_key(environment, context.inputs, context.platform)


def learn_slim_facts(context: BuildContext, environment: Environment) -> None:
    """Ask the full image what a slim one needs of it, and write that into the build context."""
    facts = stages.export(context, FACTS_STAGE, slim_facts.NAMES, slim_facts.MAX_BYTES)
    checked = slim_facts.checked(facts, apt=environment.apt)
    context.workspace.write_context(
        {f"{FACTS_FOLDER}/{name}": text for name, text in checked.items()}
    )


class _Install:
    """Installs one lockfile, which may be empty, and checks the image that comes of it."""

    def __init__(
        self,
        context: BuildContext,
        environment: Environment,
        lock: dict[str, Any],
        verdict: Verdict | None,
    ) -> None:
        self._context, self._environment, self._verdict = context, environment, verdict
        self._lock = lock
        self._to_install = packages_to_install(lock)
        self._labels = image_labels(
            context.request,
            environment=environment,
            identity=context.identity,
            recipe=context.inputs.recipe_version,
            lock=lock,
            workflow_commit=context.inputs.step.commit,
            workflow_source=None
            if context.request.is_own
            else context.settings.repositories.workflow_repository,
        )

    def build(self) -> Built:
        """Build a slim image where one is wanted and as good as the full one, else the full one."""
        context = self._context
        context.log.follow_install(self._to_install)
        if context.inputs.runtime is None:
            return dataclasses.replace(self._full(), full_because=context.inputs.full_because)
        # What fails here fails in either image.
        with context.step("install"):
            stages.run_stage(context, FINAL_STAGE, "type=cacheonly")
        self._end_install()
        try:
            return self._slim()
        except (SlimFailed, BuildFailed) as error:
            warning = f"The full image is built, not a slim one: {error.message}"
            context.warn(warning)
            built = self._full()
            return dataclasses.replace(
                built, full_because=error.message, warnings=(warning, *built.warnings)
            )

    def _full(self) -> Built:
        with self._context.step("install"):
            image = stages.build_stage(self._context, FINAL_STAGE, self._labels)
        self._end_install()
        return self._checked(image, FINAL_STAGE, self._labels)

    def _slim(self) -> Built:
        """Return a slim image that passed its checks.

        Raises `SlimFailed` or `BuildFailed` when it is not as good as the full one.
        """
        context = self._context
        with context.step("make it slim"):
            learn_slim_facts(context, self._environment)
            exported = stages.export(context, REPORT_STAGE, (REPORT_FILE,), slim.MAX_REPORT_BYTES)
            report = slim.read_report(exported.get(REPORT_FILE, b""))
            report.require_nothing_missing()
            labels = {**self._labels, SLIM: "true"}
            image = stages.build_stage(context, SLIM_STAGE, labels)
        return self._checked(image, SLIM_STAGE, labels)

    def _checked(self, image: str, stage: str, labels: dict[str, str]) -> Built:
        """Return the image of a stage, with its facts as labels, after it passed its checks."""
        with contextlib.ExitStack() as unless_it_passes:
            begun_sif = unless_it_passes.enter_context(self._begun_sif())
            built = self._looked_at(image, stage, labels, begun_sif)
            self._context.until_its_end.push(unless_it_passes.pop_all())
        return built

    @contextlib.contextmanager
    def _begun_sif(self) -> Iterator[BegunSif | None]:
        """Begin the SIF, where one is wanted and there is room, while the image is looked at."""
        context = self._context
        build, folder = context.settings.build, context.workspace.scratch / "begun"
        if context.inputs.filename is None or folder.exists():
            yield None
            return
        require_free_space(context.workspace.root, build.min_free_bytes)
        with convert.begin(
            folder,
            settings=build,
            time_s=context.step_time_s,
            newest_s=stages.newest_s(context),
            cancel=context.cancel,
        ) as begun:
            yield begun

    def _looked_at(
        self, image: str, stage: str, labels: dict[str, str], begun_sif: BegunSif | None
    ) -> Built:
        seen = evidence.packages_seen(self._context, self._lock)
        with self._context.step("check the files"):
            verdict, facts = checks.examine(
                self._context, image, self._verdict, self._environment.target, seen, begun_sif
            )
        if facts is not None:
            with self._context.step("label"):
                image, labels = self._labelled(image, stage, labels, facts.labels(labels))
        warnings = checks.run_smoke(self._context, image, self._environment)
        installed = evidence.installed_in(self._context, image, self._lock, seen=seen)
        return Built(
            image=image,
            reused=False,
            labels=labels,
            is_slim=SLIM in labels,
            audit=verdict.as_dict() if verdict else None,
            facts=facts.document() if facts is not None else "",
            contents=installed,
            sbom=evidence.bill_of_materials(
                self._context, installed, self._lock, is_slim=SLIM in labels
            ),
            begun_sif=begun_sif,
            warnings=warnings,
        )

    def _labelled(
        self, image: str, stage: str, labels: dict[str, str], more: dict[str, str]
    ) -> tuple[str, dict[str, str]]:
        """Return the image with more labels: BuildKit has all its layers, and writes them anew.

        Should it have lost some, what it makes of them was never looked at: the first image stays.
        """
        whole = labels | more
        labelled = stages.build_stage(self._context, stage, whole)
        if daemon.image_layers(labelled) == daemon.image_layers(image):
            daemon.remove_image(image)
            return labelled, whole
        self._context.warn("the image has no labels about its files: its layers changed meanwhile")
        daemon.remove_image(labelled)
        return image, labels

    def _end_install(self) -> None:
        """Report that the install ended, as cached layers show no packages.

        No later command's lines are about packages either.
        """
        self._context.log.follow_install(())
        if self._to_install:
            count = len(self._to_install)
            self._context.observer.progress(count, count, "installed")
