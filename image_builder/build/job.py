"""The steps of one build, each on its own; `pipeline` says in which order."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from image_builder.audit import smoke_test
from image_builder.audit.binaries import UnreadableInventory, audit_files, inventory_program
from image_builder.audit.lock_audit import Verdict, audit
from image_builder.build import publish
from image_builder.build.buildcache.mirror import MirrorTool
from image_builder.build.buildcache.signing import Signer
from image_builder.build.buildcache.stores import BuildCacheStore, FolderStore, RegistryStore
from image_builder.build.buildcache.sync import BuildCacheSync
from image_builder.build.concretization_cache import ConcretizationCache
from image_builder.build.failures import classify
from image_builder.build.log import BuildLog
from image_builder.docker import attestations, buildx, daemon, registry
from image_builder.docker.attestations import Attested, NotAttested
from image_builder.docker.isolation import cgroup, check
from image_builder.errors import (
    BuildFailed,
    CicError,
    ErrorCode,
    Interrupted,
    LimitReached,
    ServiceError,
    Unavailable,
    UserError,
)
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import ProcessFailed, Runner, run
from image_builder.host.workspace import Workspace, require_free_space
from image_builder.observer import Observer
from image_builder.plan import resolve
from image_builder.plan.identity import concretization_key
from image_builder.plan.inputs import Inputs
from image_builder.plan.render import Rendered, package_cache_of, render_request
from image_builder.recipe import slim
from image_builder.recipe.dockerfile import site_secret
from image_builder.recipe.environment import Environment
from image_builder.recipe.labels import SLIM, image_labels
from image_builder.recipe.slim import SlimFailed
from image_builder.recipe.stages import (
    CA_BUNDLE_SECRET,
    DEBUG_STAGE,
    FINAL_STAGE,
    LOCK_FILE,
    LOCK_STAGE,
    REPORT_STAGE,
    SITE_SECRET,
    SLIM_STAGE,
    SOURCES_CONTEXT,
)
from image_builder.request.build_request import BuildRequest
from image_builder.settings import ORAS, LibrarySettings
from image_builder.sif import convert
from image_builder.sources.spack_checkout import SpackSource
from image_builder.spack.install_progress import packages_to_install
from image_builder.spack.lockfile import UnreadableLock
from image_builder.state import BuildState
from image_builder.store.image_store import open_images, open_repository
from image_builder.store.record import ImageRecord

RECORD_FOLDER = "/opt/cic"
MAX_LOCK_BYTES = 32 * 1024**2
INVENTORY_TIMEOUT_S = 600
LIMITED = frozenset({ErrorCode.OUT_OF_MEMORY, ErrorCode.TOO_MANY_PROCESSES})
"""Causes that the limits of build steps may have."""
NOT_THE_USERS_FAULT = frozenset({ErrorCode.DOCKER_UNAVAILABLE, ErrorCode.BASE_IMAGE_UNAVAILABLE})
"""Causes of a failed buildx that may be gone on another try."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """An image in the daemon that passed its checks; `image` is its id, as it may have no name yet."""

    image: str
    reused: bool
    labels: dict[str, str]
    audit: dict[str, Any] | None = None
    is_slim: bool = False
    full_because: str = ""
    warnings: tuple[str, ...] = ()


class Job:
    """The steps of one build and what they share. No step leaves state behind for another but the
    log.
    """

    def __init__(
        self,
        request: BuildRequest,
        inputs: Inputs,
        settings: LibrarySettings,
        workspace: Workspace,
        observer: Observer,
        cancel: CancelToken,
        runner: Runner,
    ) -> None:
        assert inputs.identity is not None
        self.request, self.inputs, self.settings = request, inputs, settings
        self.workspace, self.observer, self.cancel, self.runner = (
            workspace,
            observer,
            cancel,
            runner,
        )
        self.identity = inputs.identity
        self.store = open_images(settings.build, settings.registry)
        self.locks = ConcretizationCache(settings.build.tmp_folder / "cache" / "locks")
        self.log = BuildLog(observer, settings.build.log_max_bytes)

    def stored_sif(self) -> ImageRecord | None:
        """The SIF that answers everything: it is stored, and nothing has to be pushed. It gets this
        request's name.
        """
        if self.request.force or self.inputs.push or self.inputs.filename is None:
            return None
        earlier = self.store.by_identity(self.identity)
        if earlier is None or earlier.sha256 is None:
            return None
        self.observer.line("This image exists already: nothing is built.")
        return self.store.point(
            earlier.model_copy(
                update={"filename": self.inputs.filename, "image_id": self.inputs.image_id}
            )
        )

    def existing_image(self) -> Built | None:
        """The image that an earlier build made of the same inputs, here or in the image registry.

        Only what passed its checks has documents here, or a name: a build that was killed may have
        left an image that never was checked.
        """
        if self.request.force:
            return None
        image = daemon.find_by_identity(
            self.identity, named=not self.store.documents(self.identity)
        )
        if image is None and self.settings.registry.url:
            image = registry.pull_by_identity(
                self.inputs.image_id,
                self.identity,
                self.request.machine.platform,
                self.settings.registry,
            )
        if image is None:
            return None
        self.observer.line("This image exists already: nothing is built.")
        self._keep_documents_of(image)
        earlier = self.store.by_identity(self.identity)
        details = earlier.details if earlier else {}
        labels = daemon.image_labels(image)
        return Built(
            image=image,
            reused=True,
            labels=labels,
            audit=details.get("audit"),
            is_slim=SLIM in labels,
            full_because=details.get("full_because", ""),
        )

    def _keep_documents_of(self, image: str) -> None:
        """What an image from elsewhere was made from: equal inputs render equally, and the lock
        lies in the image.
        """
        if not self.store.documents(self.identity):
            rendered = render_request(self.request, self.inputs, self.settings)
            lock = daemon.read_file(image, f"{RECORD_FOLDER}/spack.lock", MAX_LOCK_BYTES)
            self.store.keep_documents(self.identity, _documents(rendered, lock))

    def build(self) -> Built:
        """Concretize, hold the result against the request, then install. The image has no name yet."""
        check.require(self.settings.build, base_image=self.inputs.base.reference)
        rendered = render_request(self.request, self.inputs, self.settings)
        for warning in rendered.environment.warnings:
            self.observer.line(f"Warning: {warning}")
        self._fill_context(rendered)
        self.cancel.check()
        self.observer.entered(BuildState.BUILDING)
        lock: dict[str, Any] = {}
        verdict, exchange, is_new = None, None, False
        if rendered.recipe.has_spack:
            lock, is_new = self._concretized_lock(rendered.environment)
            verdict = self._audit(rendered.environment, lock)
            rendered = self._with_lock(lock)
            exchange = self._exchange(rendered.environment, lock)
        to_install = packages_to_install(lock)
        self.log.follow_install(to_install)
        labels = image_labels(
            self.request,
            environment=rendered.environment,
            identity=self.identity,
            recipe=self.inputs.recipe_version,
            lock=lock,
            workflow_commit=self.inputs.step.commit,
            workflow_source=self.settings.repositories.workflow_repository,
        )
        if exchange is not None:
            exchange.pull(again=not is_new)
        try:
            built = self._build_checked(rendered.environment, verdict, labels, to_install)
        except BuildFailed:  # what Spack decided earlier may name what is not there any more
            self.locks.forget(self._concretization_key(rendered.environment))
            raise
        finally:
            if exchange is not None and not self.cancel.is_set:
                exchange.push()
        self.store.keep_documents(
            self.identity, _documents(rendered, json.dumps(lock) if lock else None)
        )
        return dataclasses.replace(
            built, warnings=(*rendered.environment.warnings, *built.warnings)
        )

    def _build_checked(
        self,
        environment: Environment,
        verdict: Verdict | None,
        labels: dict[str, str],
        to_install: int,
    ) -> Built:
        """The image that passed its checks: a slim one where that is wanted and as good as the full
        one.
        """
        if self.inputs.runtime is None:
            built = self._build_full(environment, verdict, labels, to_install)
            return dataclasses.replace(built, full_because=self.inputs.full_because)
        self._buildx(FINAL_STAGE, "type=cacheonly")  # what fails here fails in either image
        self._tell_installed(to_install)
        try:
            return self._build_slim(environment, verdict, labels)
        except (SlimFailed, BuildFailed) as error:
            warning = f"The full image is built, not a slim one: {error.message}"
            self.observer.line(f"Warning: {warning}")
            built = self._build_full(environment, verdict, labels, to_install)
            return dataclasses.replace(
                built, full_because=error.message, warnings=(warning, *built.warnings)
            )

    def _build_full(
        self,
        environment: Environment,
        verdict: Verdict | None,
        labels: dict[str, str],
        to_install: int,
    ) -> Built:
        image = self._build_stage(FINAL_STAGE, labels)
        self._tell_installed(to_install)
        if verdict is not None:
            verdict = self._audit_image(image, verdict, environment.target)
        return Built(
            image=image,
            reused=False,
            labels=labels,
            audit=verdict.as_dict() if verdict else None,
            warnings=self._smoke(image, environment),
        )

    def _build_slim(
        self, environment: Environment, verdict: Verdict | None, labels: dict[str, str]
    ) -> Built:
        """The slim image. Raises `SlimFailed` or `BuildFailed` when it is not as good as the full
        one.
        """
        folder = self.workspace.scratch / "report"
        self._buildx(REPORT_STAGE, f"type=local,dest={folder}")
        report = slim.read_report((folder / "report.json").read_text("utf-8"))
        report.require_nothing_missing()
        if verdict is not None:
            verdict = self._require_passed(
                audit_files(
                    verdict,
                    report.inventory,
                    platform=self.request.machine.platform,
                    target=environment.target,
                )
            )
        image = self._build_stage(SLIM_STAGE, {**labels, SLIM: "true"})
        return Built(
            image=image,
            reused=False,
            labels={**labels, SLIM: "true"},
            is_slim=True,
            audit=verdict.as_dict() if verdict else None,
            warnings=self._smoke(image, environment),
        )

    def _tell_installed(self, packages: int) -> None:
        """Layers that were there already said nothing of their packages, and no later command is
        about them.
        """
        self.log.follow_install(0)
        if packages:
            self.observer.progress(packages, packages, "installed")

    def _build_stage(self, stage: str, labels: dict[str, str]) -> str:
        """The id of the image of a stage, which has no name yet."""
        metadata = self.workspace.scratch / "made.json"
        self._buildx(stage, "type=docker", metadata_file=metadata, labels=labels)
        return buildx.image_id_from_metadata(metadata.read_text("utf-8"))

    def build_debug_image(self) -> str:
        """The stage before concretization, with the recipe's files in it."""
        rendered = render_request(self.request, self.inputs, self.settings)
        if not rendered.recipe.has_spack:
            raise UserError("This request needs no Spack: there is nothing to debug.")
        self._fill_context(rendered)
        return self._build_stage(DEBUG_STAGE, {})

    def push(self, built: Built) -> str | None:
        """Push the named image, with attestations where the builder has them; returns its digest in
        the registry.
        """
        self.cancel.check()
        self.observer.line(f"Pushing {self.inputs.image_id}")
        if self.settings.build.attestations and not buildx.sees_local_images(
            self.settings.build, run
        ):
            try:
                with _limit_of(ErrorCode.PUSH_TIMEOUT):
                    return self._push_attested(built)
            except (BuildFailed, NotAttested, ProcessFailed, Unavailable) as error:
                self.observer.line(f"Warning: the image is pushed without attestations: {error}")
        command = registry.push_command(
            self.inputs.image_id,
            self.settings.registry,
            environment=self._client_environment(),
            timeout_s=self.settings.build.push_timeout_s,
        )
        with _limit_of(ErrorCode.PUSH_TIMEOUT):
            return publish.push_image(
                command, self.runner, on_line=self.observer.line, cancel=self.cancel
            )

    def _push_attested(self, built: Built) -> str:
        """Let the builder push, and give what it pushed the image's name; an earlier build may have
        done so.
        """
        attested = Attested(
            self.settings.build,
            environment=self._client_environment(),
            runner=self.runner,
            on_line=self.observer.line,
            cancel=self.cancel,
        )
        layers = daemon.image_layers(built.image)
        if built.reused:
            return attested.require(self.inputs.image_id, layers)
        metadata = self.workspace.scratch / "pushed.json"
        self._buildx(
            SLIM_STAGE if built.is_slim else FINAL_STAGE,
            attestations.output(self.inputs.image_id),
            labels=built.labels,
            attested=attestations.wanted(self.settings.build),
            metadata_file=metadata,
        )
        pushed = attestations.pushed(self.inputs.image_id, metadata.read_text("utf-8"))
        digest = attested.require(pushed, layers)
        attested.name(pushed, self.inputs.image_id)
        return digest

    def store_image(self, built: Built) -> ImageRecord:
        """Keep the image's record, and its SIF if one was asked for: a stored one, or a new one."""
        record = ImageRecord(
            identity=self.identity,
            image_id=self.inputs.image_id,
            platform=self.request.machine.platform,
            filename=self.inputs.filename,
            details={
                "request": self.request.model_dump(mode="json"),
                "recipe": self.inputs.recipe_version,
                "commit": self.inputs.step.commit,
                "audit": built.audit,
                "labels": built.labels,
                "image_bytes": daemon.image_bytes(built.image),
                "slim": built.is_slim,
                "full_because": built.full_because,
            },
        )
        if self.inputs.filename is None:
            return self.store.record(record)
        earlier = self.store.by_identity(self.identity)
        if built.reused and earlier is not None and earlier.sha256 is not None:
            return self.store.point(
                record.model_copy(
                    update={"sha256": earlier.sha256, "size_bytes": earlier.size_bytes}
                )
            )
        return self._convert(built.image, record)

    def _convert(self, image: str, record: ImageRecord) -> ImageRecord:
        self.cancel.check()
        self.observer.entered(BuildState.CONVERTING)
        require_free_space(self.workspace.root, self.settings.build.min_free_bytes)
        with self.store.temporary_path() as temporary, _limit_of(ErrorCode.CONVERSION_TIMEOUT):
            conversion = convert.convert(
                image,
                temporary,
                platform=self.request.machine.platform,
                settings=self.settings.build,
                scratch=self.workspace.scratch,
                on_line=self.log.line,
                cancel=self.cancel,
            )
            return self.store.publish(temporary, record, sha256=conversion.sha256)

    def _fill_context(self, rendered: Rendered) -> None:
        context = self.workspace.context
        if self.request.is_base:
            SpackSource(self.settings).copy(resolve.pinned_spack(self.inputs), context, self.cancel)
        else:
            resolve.extract_step(self.inputs.step, self.settings, context / "step", self.cancel)
            resolve.open_catalogue(self.settings).copy(
                self.inputs.catalogue,
                context / "catalogue",
                context / "spack-config",
                cancel=self.cancel,
            )
        files = {**rendered.recipe.files, "Dockerfile": rendered.recipe.dockerfile}
        if self.inputs.runtime is not None:
            files[slim.FIRST_LINES_FILE] = slim.first_lines(context / "step")
        self.workspace.write_context(files)

    def _exchange(self, environment: Environment, lock: dict[str, Any]) -> BuildCacheSync | None:
        """The way to where build hosts share built packages, if this build has one."""
        build = self.settings.build
        name = package_cache_of(self.request, environment, self.inputs, self.settings, lock)
        if not build.has_package_place or name is None:
            return None
        tool = MirrorTool(
            scratch=self.workspace.scratch,
            runner=self.runner,
            cancel=self.cancel,
            timeout_s=build.push_timeout_s,
            on_line=self.observer.line,
        )
        place: BuildCacheStore
        if build.spack_cache.startswith(ORAS):
            repository = open_repository(build.spack_cache, build, self.settings.registry)
            place = RegistryStore(
                repository, name, scratch=self.workspace.scratch, cancel=self.cancel
            )
        else:
            place = FolderStore(Path(build.spack_cache) / name, tool)
        signer = (
            Signer(build.spack_cache_keys, cache=name)
            if build.spack_cache_keys is not None
            else None
        )
        return BuildCacheSync(
            place,
            lock,
            signer=signer,
            tool=tool,
            workspace=self.workspace,
            run_stage=self._buildx,
            observer=self.observer,
        )

    def _concretized_lock(self, environment: Environment) -> tuple[dict[str, Any], bool]:
        """What Spack installs: as it was decided earlier for the same inputs, else as it decides
        now; and which.
        """
        key = self._concretization_key(environment)
        known = None if self.request.force else self.locks.get(key)
        if known is not None:
            self.observer.line("The same was concretized before: its spack.lock is used.")
            text = known
        else:
            text = self._concretize()
            self.locks.keep(key, text)
        self.workspace.write_context({LOCK_FILE: text})
        return json.loads(text), known is None

    def _concretization_key(self, environment: Environment) -> str:
        return concretization_key(environment, self.inputs, self.request.machine.platform)

    def _concretize(self) -> str:
        """Let Spack decide what to install, and bring its `spack.lock` back before anything is
        installed.
        """
        folder = self.workspace.scratch / "lock"
        self._buildx(LOCK_STAGE, f"type=local,dest={folder}")
        return (folder / "spack.lock").read_text("utf-8")

    def _with_lock(self, lock: dict[str, Any]) -> Rendered:
        """The recipe for what is now known to be installed."""
        rendered = render_request(self.request, self.inputs, self.settings, lock=lock)
        self.workspace.write_context({"Dockerfile": rendered.recipe.dockerfile})
        return rendered

    def _audit(self, environment: Environment, lock: dict[str, Any]) -> Verdict:
        try:
            verdict = audit(
                lock,
                target=environment.target,
                mpi=environment.mpi,
                gpu=environment.gpu,
                gpu_arch=environment.gpu_arch,
                roots=environment.roots,
            )
        except UnreadableLock as error:
            raise ServiceError(
                f"Spack's lock file cannot be read: {error}.",
                hint="The base image's Spack may be newer than this service knows.",
            ) from error
        return self._require_passed(verdict)

    def _audit_image(self, image: str, verdict: Verdict, target: str) -> Verdict:
        """Look at the programs and libraries themselves. An image without Python cannot be looked
        at: that is told.
        """
        try:
            listing = daemon.run_probe(
                image,
                self.request.machine.platform,
                inventory_program(self.inputs.recipe_version),
                timeout_s=INVENTORY_TIMEOUT_S,
            )
            whole = audit_files(
                verdict, listing, platform=self.request.machine.platform, target=target
            )
        except (CicError, UnreadableInventory) as error:
            self.observer.line(f"Warning: what was built was not looked at: {error}")
            return verdict
        try:
            return self._require_passed(whole)
        except BuildFailed:
            daemon.remove_image(image)
            raise

    def _smoke(self, image: str, environment: Environment) -> tuple[str, ...]:
        """Run the description's smoke command, if it has one; returns what there is to warn of."""
        if not environment.smoke:
            return ()
        if reason := smoke_test.incompatibility(image, self.request.machine):
            warning = f"The smoke command was not run: {reason}"
            self.observer.line(f"Warning: {warning}")
            return (warning,)
        self.observer.line(f"Smoke command: {shlex.join(environment.smoke)}")
        try:
            smoke_test.run_smoke(
                image,
                environment.smoke,
                machine=self.request.machine,
                step_id=self.request.step_id,
                timeout_s=self.settings.build.smoke_timeout_s,
                runner=self.runner,
                on_line=self.log.line,
                cancel=self.cancel,
            )
        except CicError:
            daemon.remove_image(image)
            raise
        return ()

    def _require_passed(self, verdict: Verdict) -> Verdict:
        self.observer.line("Audit of the image against the request:")
        for line in verdict.table().splitlines():
            self.observer.line(f"  {line}")
        if not verdict.ok:
            raise BuildFailed(
                "What Spack made of the request is not what was asked for: "
                + "; ".join(map(str, verdict.problems[:5])),
                code=ErrorCode.TARGET_MISMATCH,
                step="audit",
                hint="Nothing was published.",
            )
        return verdict

    def _buildx(
        self,
        stage: str,
        output: str,
        *,
        metadata_file: Path | None = None,
        labels: dict[str, str] | None = None,
        nonce: str | None = None,
        contexts: Mapping[str, Path] | None = None,
        attested: Sequence[str] = (),
    ) -> None:
        build = self.settings.build
        require_free_space(self.workspace.root, build.min_free_bytes)
        command = buildx.build_command(
            context=self.workspace.context,
            platform=self.request.machine.platform,
            settings=build,
            target=stage,
            environment=self._client_environment(),
            labels=labels or {},
            secrets=self._secrets(),
            output=output,
            build_contexts=self._build_contexts() | dict(contexts or {}),
            metadata_file=metadata_file,
            nonce=self._nonce() if nonce is None else nonce,
            cgroup=self._cgroup(),
            attested=attested,
            cache_tag=buildx.cache_tag(
                self.request.workflow, self.request.step_id, self.request.machine.platform
            ),
        )
        self.log.begin(str(command))
        try:
            with _limit_of(ErrorCode.BUILD_TIMEOUT):
                self.runner(command, on_line=self.log.line, cancel=self.cancel)
        except ProcessFailed as error:
            if error.exit_code == buildx.PLUGIN_WAS_ENDED:
                raise Interrupted(command.name) from error
            cause = classify.classify(self.log.recent, step=stage)
            if cause.code is ErrorCode.CANCELLED:  # by nobody here: `run` would have said so
                raise Interrupted(command.name) from error
            if cause.code in NOT_THE_USERS_FAULT:
                raise Unavailable(cause.message, hint=cause.hint, code=cause.code) from error
            bounds = cgroup.in_force(build) if cause.code in LIMITED else None
            message = (
                f"{cause.message} Build steps may use no more than {bounds}."
                if bounds
                else cause.message
            )
            raise BuildFailed(
                message,
                code=cause.code,
                hint=cause.hint,
                step=cause.step,
                package=cause.package,
                excerpt=cause.excerpt,
            ) from error

    def _client_environment(self) -> dict[str, str]:
        """Of Docker's client: its configuration is the build's own, and so is what it leaves behind
        when killed.
        """
        configuration = registry.write_docker_config(
            self.workspace.secrets / "docker", self.settings.registry
        )
        return configuration | {"TMPDIR": str(self.workspace.scratch), **attestations.ENVIRONMENT}

    def _cgroup(self) -> str | None:
        """The control group of build steps, which Docker's own builder finds on this machine."""
        return (
            cgroup.cgroup_of(self.settings.build)
            if buildx.sees_local_images(self.settings.build, run)
            else None
        )

    def _nonce(self) -> str:
        """What keeps a forced build from earlier layers other than its own: its workspace's name,
        which is unique.
        """
        root = self.workspace.root
        return f"{root.parent.name}-{root.name}" if self.request.force else ""

    def _build_contexts(self) -> dict[str, Path]:
        """Folders beside the build context: a Spack source mirror of this machine."""
        folder = self.settings.build.spack_mirror_folder
        return {} if folder is None else {SOURCES_CONTEXT: folder}

    def _secrets(self) -> dict[str, Path]:
        """What the build may mount and no layer keeps: the site's CA bundle, mirrors and number of
        jobs.
        """
        build = self.settings.build
        site = site_secret(
            build_jobs=build.jobs_per_build(),
            pip_index_url=build.pip_index_url,
            apt_mirror=build.apt_mirror,
            spack_mirror=None if build.spack_mirror_folder else build.spack_mirror,
        )
        secrets = {SITE_SECRET: self.workspace.write_secret(SITE_SECRET, site.encode())}
        if build.ca_bundle is not None:
            secrets[CA_BUNDLE_SECRET] = build.ca_bundle
        return secrets


def _documents(rendered: Rendered, lock: str | None) -> dict[str, str]:
    """What the image was made from, as it also lies in the image below `/opt/cic`."""
    record = "cic/record/"
    files = {
        name.removeprefix(record): text
        for name, text in rendered.recipe.files.items()
        if name.startswith(record)
    }
    files["Dockerfile"] = rendered.recipe.dockerfile
    if rendered.environment.spack_yaml is not None:
        files["spack.yaml"] = rendered.environment.spack_yaml
    if lock:
        files["spack.lock"] = lock
    return files


@contextlib.contextmanager
def _limit_of(code: ErrorCode) -> Iterator[None]:
    """Let a command that took too long say in which stage that was."""
    try:
        yield
    except LimitReached as error:
        if error.code is not ErrorCode.TIMEOUT:
            raise
        raise LimitReached(error.message, hint=error.hint, code=code) from error
