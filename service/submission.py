"""Turn a user's request into a build: pin its inputs, look for an existing image, else queue it."""

from __future__ import annotations

import dataclasses
import logging
from typing import IO, Any

from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder import pipeline
from image_builder.build import relock
from image_builder.docker import daemon, label_names
from image_builder.errors import CicError, FieldProblem, InvalidRequest
from image_builder.plan import resolve
from image_builder.plan.digest import json_digest
from image_builder.plan.inputs import Inputs
from image_builder.plan.relock import Relock
from image_builder.request.again import FIELD
from image_builder.request.build_request import BuildRequest
from image_builder.settings import ORAS
from image_builder.sources.step import StepRef
from image_builder.sources.uploads import Upload
from image_builder.state import BuildState
from image_builder.store.image_store import Images
from image_builder.store.record import SUBMITTED_AT, ImageRecord
from service import quota
from service.bottleneck import Bottleneck
from service.db import accounts, builds
from service.db.builds import NewBuild, Outcome
from service.db.models import PRIVATE, SITE
from service.errors import Forbidden
from service.logs.protocol import Logs
from service.uploads import Uploads
from service.workers.executors import Executor

_log = logging.getLogger(__name__)
ID_LENGTH = 36


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """Accepts requests for one service."""

    engine: Engine
    settings: Settings
    images: Images
    logs: Logs
    executor: Executor
    uploads: Uploads
    resolving: Bottleneck
    """What asks git and Docker, or unpacks folders, which may take their time."""

    def submit(self, request: BuildRequest, *, user_id: int, is_admin: bool) -> str:
        """Accept a request and return its build's id; from then on it survives a restart.

        Raises `InvalidRequest`, `NotFound`, `Forbidden`, `LimitReached` (a quota) or `Unavailable`.
        """
        owner = self._admitted(request, user_id, is_admin)
        limits = quota.limits_of(self.engine, self.settings, self.images, user_id)
        builds.require_room(self.engine, user_id, limits)
        kept = self._kept(request, user_id)
        with self.resolving.passed(user_id):
            inputs = resolve.resolve(
                request,
                self.settings.library,
                is_built_here=self.settings.service.executor == "pool",
                owner=owner,
                step=self._fetched(request, user_id, kept),
                relock=kept,
            )
        new = new_build(request, inputs, user_id)
        if not request.force and not inputs.push and inputs.identity is not None:
            with self.images.using(
                inputs.identity
            ):  # the image that exists stays until the build that has it is written
                outcome = self._existing(inputs, inputs.identity)
                if outcome is not None:
                    return builds.create_finished(self.engine, new, limits, outcome)
        build_id, run_id = builds.create_or_join(self.engine, new, limits)
        _log.info(
            "build=%s run=%s user_id=%d",
            build_id,
            run_id,
            user_id,
            extra={"build": build_id, "run": run_id},
        )
        self.executor.submit(run_id)
        return build_id

    def take_folder(self, archive: IO[bytes], *, user_id: int) -> Upload:
        """Keep a folder that a user sends; see `Uploads.take`."""
        with self.resolving.passed(user_id):
            return self.uploads.take(archive, user_id)

    def plan(self, request: BuildRequest, *, user_id: int, is_admin: bool) -> pipeline.Plan:
        """Return what would be built; nothing is built or written."""
        owner = self._admitted(request, user_id, is_admin)
        kept = self._kept(request, user_id)
        with self.resolving.passed(user_id):
            step = self._fetched(request, user_id, kept)
            inputs = resolve.resolve(
                request, self.settings.library, owner=owner, step=step, relock=kept
            )
            return pipeline.plan(request, self.settings.library, inputs=inputs)

    def _fetched(
        self, request: BuildRequest, user_id: int, kept: Relock | None = None
    ) -> StepRef | None:
        """Return the step in a user's repository; None for a request that names none.

        What is built again is fetched at the commit of before.
        """
        if request.repository is None:
            return None
        if kept is not None and kept.pins is not None and kept.pins.commit is not None:
            request = request.model_copy(update={"version": kept.pins.commit})
        return self.uploads.fetch(request, user_id)

    def kept_request(self, build_id: str, user_id: int) -> dict[str, Any]:
        """Return the request of a user's finished build, to build it again.

        Raises `InvalidRequest` for any other build.
        """
        fields: dict[str, Any] = self._finished(build_id, user_id).request
        return fields

    def _kept(self, request: BuildRequest, user_id: int) -> Relock | None:
        """Return what was kept of the build that a request names; None if it names none."""
        if not isinstance(request.from_lock, str):
            return None
        row = self._finished(request.from_lock, user_id)
        return relock.relock(relock.kept_materials(self.images, str(row.identity)))

    def _finished(self, build_id: str, user_id: int) -> Any:
        row = builds.build(self.engine, build_id) if len(build_id) == ID_LENGTH else None
        if row is None or row.user_id != user_id:
            problem, hint = "is no build of yours", "GET /build/ lists your builds"
            raise InvalidRequest([FieldProblem(FIELD, problem, hint)])
        if row.own_state != BuildState.FINISHED:
            problem = "is a build that made no image"
            raise InvalidRequest([FieldProblem(FIELD, problem, "name a finished build")])
        return row

    def _admitted(self, request: BuildRequest, user_id: int, is_admin: bool) -> str | None:
        """Return `_owner`. Raises the error of a request that this user may not make."""
        require_right(request, is_admin)
        if request.folder is not None:
            self.uploads.require(request.folder, user_id)
        return self._owner(request, user_id)

    def _owner(self, request: BuildRequest, user_id: int) -> str | None:
        """Return whose name a private image has, or None for one that everybody may see.

        Raises `InvalidRequest` for a private image with a SIF where those are stored for all.
        """
        if not request.is_private:
            return None
        library = self.settings.library
        is_stored = request.machine.container_engine == "singularity"
        if is_stored and library.build.storage.startswith(ORAS) and not library.registry.private:
            problem = "this site stores SIFs in a registry that others read"
            raise InvalidRequest([FieldProblem("visibility", problem, "write site")])
        return accounts.name_of(self.engine, user_id)

    def withdraw(self, build_id: str) -> None:
        """End a build for its user; its run stops when no other build wants it."""
        row = builds.build(self.engine, build_id)
        log_bytes = None if row is None else self.logs.of(row.run_id).size_bytes()
        run_id = builds.withdraw(
            self.engine, build_id, "The build was cancelled.", log_bytes=log_bytes
        )
        if run_id is not None:
            self.executor.cancel(run_id)

    def _existing(self, inputs: Inputs, identity: str) -> Outcome | None:
        """Return what was asked for if all of it exists, else None.

        That is the SIF, or the image in the daemon under its name.
        """
        if inputs.filename is None:
            is_there = _has_image(inputs.image_id, identity) and self._renews_name(inputs, identity)
            return _outcome(inputs) if is_there else None
        record = self.images.by_identity(identity)
        if record is None or record.sha256 is None:
            return None
        # Also a name that means this image already: it is requested later than what is being built.
        record = self.images.point(
            record.model_copy(
                update={
                    "filename": inputs.filename,
                    "image_id": inputs.image_id,
                    "details": {**record.details, SUBMITTED_AT: inputs.submitted_at},
                }
            )
        )
        return _outcome(
            inputs,
            sha256=record.sha256,
            size_bytes=record.size_bytes,
            audit=record.details.get("audit"),
        )

    def _renews_name(self, inputs: Inputs, identity: str) -> bool:
        """Let the name of an image in the daemon count as requested now; False if it is not its."""
        return self.images.take_name(
            ImageRecord(
                identity=identity,
                image_id=inputs.image_id,
                platform=inputs.base.platform,
                details={SUBMITTED_AT: inputs.submitted_at},
            )
        )


def require_right(request: BuildRequest, is_admin: bool) -> None:
    """Raise `Forbidden` for a base image that a user without administrator rights asks for."""
    if request.is_base and not is_admin:
        raise Forbidden(
            "Only administrators may build base images.",
            hint="Name a workflow and a step of the workflow registry.",
        )


def new_build(request: BuildRequest, inputs: Inputs, user_id: int) -> NewBuild:
    """Return an accepted request as it is written to the database."""
    key = inputs.identity or _unresolved_key(request, inputs)
    if inputs.relock is not None:  # it shares no run with what Spack decides now
        key = "relock:" + json_digest([key, inputs.relock.digest])
    return NewBuild(
        user_id=user_id,
        request=request.model_dump(mode="json"),
        inputs=inputs.model_dump(mode="json"),
        join_key=builds.forced(key) if request.force else key,
        identity=inputs.identity,
        platform=request.machine.platform,
        target=request.machine.target.name,
        force=request.force,
        image_id=inputs.image_id,
        filename=inputs.filename,
        engine=request.machine.container_engine,
        push=inputs.push,
        warnings=inputs.warnings,
        visibility=PRIVATE if request.is_private else SITE,
    )


def _unresolved_key(request: BuildRequest, inputs: Inputs) -> str:
    """Return the join key of requests whose identity is not known yet, as their base image is not.

    It covers the whole request.
    """
    fields: dict[str, Any] = request.model_dump(mode="json", include={"machine", "slim"})
    fields |= {"workflow": request.workflow_name, "step_id": request.step_name}
    fields["machine"].pop("container_engine")
    return "unresolved:" + json_digest(
        [
            fields,
            inputs.step.tree,
            inputs.catalogue.packages_tree,
            inputs.catalogue.config_tree,
            inputs.base.reference,
            inputs.runtime.reference if inputs.runtime is not None else None,
            inputs.branch_commits,
            inputs.recipe_version,
        ]
    )


def _has_image(image_id: str, identity: str) -> bool:
    """Whether the daemon has this image under this name; a daemon that does not answer has nothing."""
    try:
        return daemon.image_labels(image_id).get(label_names.IDENTITY) == identity
    except CicError:
        return False


def _outcome(
    inputs: Inputs, *, sha256: str | None = None, size_bytes: int | None = None, audit: Any = None
) -> Outcome:
    assert inputs.identity is not None
    return Outcome(
        identity=inputs.identity,
        filename=inputs.filename,
        sha256=sha256,
        size_bytes=size_bytes,
        pushed_digest=None,
        audit=audit,
        warnings=inputs.warnings,
    )
