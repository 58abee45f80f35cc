"""Work on one run, from its claim to its end: load it, call the library, record the result."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder import pipeline
from image_builder.errors import Cancelled, CicError, ErrorCode, NoSpace, ServiceError
from image_builder.host import files
from image_builder.host.cancellation import CancelToken
from image_builder.plan.image_name import is_private_name
from image_builder.plan.inputs import Inputs
from image_builder.request.build_request import BuildRequest
from image_builder.state import BuildState
from image_builder.store import spellings
from image_builder.store.image_store import open_images
from image_builder.timeline.spans import Span
from service import quota
from service.console import about_run
from service.db import runs, timelines
from service.db.builds import Outcome
from service.db.database import DatabaseSilent, now
from service.db.runs import ClaimLost, Delivery
from service.logs.run_log import RunLog
from service.logs.storage import logs_of
from service.workers.progress_writer import ProgressWriter
from service.workers.timeline_writer import TimelineWriter

HAND_BACK = "The service stops; the build goes back to the queue."
"""The reason of a cancellation by the service itself: the run is queued again."""

PROGRESS_EVERY_S = 1.0
STAGES = {
    BuildState.STARTED: "prepare",
    BuildState.BUILDING: "build",
    BuildState.CONVERTING: "convert",
}
PASSING = frozenset(
    {
        ErrorCode.DOCKER_UNAVAILABLE,
        ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE,
        ErrorCode.CATALOGUE_UNAVAILABLE,
        ErrorCode.IMAGE_REGISTRY_UNAVAILABLE,
        ErrorCode.INTERRUPTED,
    }
)
"""Causes that may be gone in a while: the run is tried again."""
OWN_STEP = frozenset(
    {
        ErrorCode.PUSH_FAILED,
        ErrorCode.PUSH_TIMEOUT,
        ErrorCode.IMAGE_REGISTRY_UNAVAILABLE,
        ErrorCode.CONVERSION_FAILED,
        ErrorCode.CONVERSION_TIMEOUT,
    }
)
"""Failures of what one build wanted beyond the shared image: the others may still get what they
want.
"""

BuildImage = Callable[..., pipeline.BuildResult]
"""`pipeline.build_image`, or what a test has in its place."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    """Works on runs that were claimed in the name of `name`."""

    name: str
    engine: Engine
    settings: Settings
    build_image: BuildImage = pipeline.build_image

    def run_build(self, run_id: str, cancel: CancelToken) -> None:
        """Work on a claimed run until it ends, is queued again, or is lost to another worker."""
        library = self.settings.library
        try:
            with (
                about_run(run_id),
                RunLog(
                    logs_of(self.settings, self.engine).of(run_id),
                    max_bytes=library.build.log_max_bytes,
                    secrets=library.secrets,
                ) as log,
            ):
                self._deliver_all(run_id, cancel, log)
        except ClaimLost:
            _log.warning("run %s is not ours any more", run_id)
        except OSError as error:
            self._fail(run_id, _from_os(error))

    def _deliver_all(self, run_id: str, cancel: CancelToken, log: RunLog) -> None:
        """Give every build of the run what it wants; those who join meanwhile, too."""
        shared_part_done = False
        timeline = TimelineWriter(
            lambda document: timelines.write(self.engine, run_id, self.name, document),
            secrets=self.settings.library.secrets,
        )
        while True:
            delivery = runs.next_delivery(self.engine, run_id, self.name)
            if delivery is None:
                if runs.finish(self.engine, run_id, self.name):
                    return
                continue
            try:
                cancel.check()
                if not shared_part_done:
                    self._require_room(run_id)
                outcome = self._make(
                    run_id, delivery, cancel, log, timeline, reuse=shared_part_done
                )
            except Cancelled as error:
                self._end_cancelled(run_id, error, log)
                return
            except pipeline.NotWanted as error:
                log.line(error.message)
            except CicError as error:
                log.line(f"{error.code.value}: {error}")
                log.flush()
                if self._is_tried_later(run_id, error):
                    return
                if error.code not in OWN_STEP:
                    runs.fail(self.engine, run_id, self.name, error)
                    return
                runs.fail_delivery(
                    self.engine, run_id, self.name, delivery, error, log_bytes=log.size_bytes
                )
            else:
                runs.deliver(
                    self.engine, run_id, self.name, delivery, outcome, log_bytes=log.size_bytes
                )
            shared_part_done = True

    def _require_room(self, run_id: str) -> None:
        library = self.settings.library
        images = open_images(library.build, library.registry)
        quota.require_room_for_run(self.engine, self.settings, images, run_id)

    def _make(
        self,
        run_id: str,
        delivery: Delivery,
        cancel: CancelToken,
        log: RunLog,
        timeline: TimelineWriter,
        *,
        reuse: bool,
    ) -> Outcome:
        """Build, or reuse, and name one image. Whatever goes wrong comes out as a `CicError`."""
        request = BuildRequest.model_validate(delivery.request)
        inputs = pinned_inputs(delivery.inputs)
        if inputs is None and (request.is_private or request.is_own):
            # Neither its owner nor the folder that was pinned would be known.
            raise ServiceError(
                "Another version of the service accepted this request.", hint="Send it again."
            )
        if reuse:
            request = request.model_copy(update={"force": False})
        observer = _RunObserver(self, run_id, log, timeline)
        log.line(
            f"--- {now():%Y-%m-%d %H:%M:%S} UTC, {self.name.split(':')[0]}: {request.workflow_name}/{request.step_name}"
        )
        try:
            result = self.build_image(
                request,
                settings=self.settings.library,
                inputs=inputs,
                observer=observer,
                workspace=self.settings.library.build.builds_folder / run_id,
                cancel=cancel,
                requested_at=lambda: runs.requested_at(self.engine, run_id, delivery),
            )
        except (CicError, ClaimLost):
            raise
        except OSError as error:
            raise _from_os(error) from error
        except Exception as error:
            _log.exception("run %s failed in the service", run_id)
            raise ServiceError(
                f"The service failed at this build ({type(error).__name__}).",
                hint="Ask the operator to look into the service's log.",
            ) from error
        finally:
            observer.stop()
        self._offer(result)
        return Outcome(
            identity=result.identity,
            filename=result.filename,
            sha256=result.sha256,
            size_bytes=result.size_bytes,
            pushed_digest=result.pushed_digest,
            audit=result.audit,
            warnings=result.warnings,
        )

    def _offer(self, result: pipeline.BuildResult) -> None:
        """Where the operator wants it, link a SIF under its plain name for everybody.

        A name that an image which was requested later has stays with that.
        """
        if (
            self.settings.service.public_downloads
            and result.sif_path is not None
            and result.filename is not None
            and not is_private_name(result.filename)
        ):
            library = self.settings.library
            owner = open_images(library.build, library.registry).by_name(result.filename)
            if owner is not None and owner.sha256 != result.sha256:
                return
            for name in spellings.of_filename(result.filename):
                if name == result.filename or (self._images / name).exists():
                    files.link_file(result.sif_path, self._images / name)

    @property
    def _images(self) -> Path:
        return self.settings.library.build.tmp_folder / "images"

    def _end_cancelled(self, run_id: str, error: Cancelled, log: RunLog) -> None:
        log.line(error.message)
        log.flush()
        if error.message == HAND_BACK:
            runs.hand_back(self.engine, run_id, self.name)
        else:
            runs.fail(self.engine, run_id, self.name, error)

    def _is_tried_later(self, run_id: str, error: CicError) -> bool:
        """Return whether the run waits for its cause to pass.

        Its builds keep what they have got already.
        """
        service = self.settings.service
        passes = error.code in PASSING or isinstance(error, DatabaseSilent)
        return passes and runs.retry_later(
            self.engine,
            run_id,
            self.name,
            error,
            delay_s=service.retry_delay_s,
            max_retries=service.max_retries,
        )

    def _fail(self, run_id: str, error: CicError) -> None:
        try:
            runs.fail(self.engine, run_id, self.name, error)
        except ClaimLost:
            _log.warning("run %s is not ours any more", run_id)


class _RunObserver:
    """Writes down what the library tells: states, progress and times to the database, lines to the
    log.
    """

    def __init__(self, worker: Worker, run_id: str, log: RunLog, timeline: TimelineWriter) -> None:
        self._worker, self._run_id, self._log = worker, run_id, log
        self._timeline = timeline
        self._progress = ProgressWriter(self._write_progress, PROGRESS_EVERY_S)

    def entered(self, state: BuildState) -> None:
        self._progress.stop()
        self._log.line(f"--- {state.value}")
        runs.move(
            self._worker.engine, self._run_id, self._worker.name, state, STAGES.get(state, "")
        )

    def progress(self, done: int, total: int, what: str) -> None:
        """Not more often than once a second, the end aside: Spack may say a hundred lines at once."""
        self._progress.give(done, total, what)

    def stop(self) -> None:
        """Write no more progress, and the times as they are: the build has ended."""
        self._progress.stop()
        self._timeline.flush()

    def _write_progress(self, done: int, total: int, what: str) -> None:
        runs.progress(self._worker.engine, self._run_id, self._worker.name, done, total, what)

    def line(self, text: str) -> None:
        self._log.line(text)

    def span(self, span: Span) -> None:
        self._timeline.add(span)


def pinned_inputs(stored: Mapping[str, Any]) -> Inputs | None:
    """Return the inputs that were pinned at submit.

    None stands for those that an older version of the service wrote in another form.
    """
    try:
        return Inputs.model_validate(dict(stored))
    except ValidationError:
        return None


def _from_os(error: OSError) -> CicError:
    if NoSpace.is_meant_by(error):
        return NoSpace("A disk is full.", hint="Ask the operator to free some room.")
    return ServiceError(
        f"The service could not use its disk: {error.strerror or error}.",
        hint="Ask the operator to look into the service's log.",
    )
