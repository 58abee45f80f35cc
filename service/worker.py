"""Works on one claimed run: loads it, calls the library, and writes down how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from image_builder import pipeline
from image_builder.errors import BuildFailed, Cancelled, CicError, ErrorCode, Unavailable
from image_builder.process import CancelToken
from image_builder.request import BuildRequest
from image_builder.resolve import Inputs
from image_builder.state import BuildState, may_move
from service import store
from service.logs import LogWriter, RunLogs
from service.models import Build, Run

logger = logging.getLogger(__name__)

BuildImage = Callable[..., pipeline.BuildResult]
RETRY_DELAYS_S = (2.0, 8.0, 30.0)
WORTH_A_RETRY = frozenset({ErrorCode.DOCKER_UNAVAILABLE, ErrorCode.WORKFLOW_REGISTRY_UNAVAILABLE,
                           ErrorCode.IMAGE_REGISTRY_UNAVAILABLE, ErrorCode.CATALOGUE_UNAVAILABLE})
PROGRESS_INTERVAL_S = 0.5


class RunCancel(CancelToken):
    """A cancel token that knows whether its run is over or goes back to the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_back = False

    def hand_back(self) -> None:
        """End the work on a run that is to be queued again."""
        self.goes_back = True
        self.cancel("The service is stopping: the build goes back to the queue.")


class Worker:
    """What working on a run needs. `build_image` is the library's, or a test's."""

    def __init__(self, name: str, settings: Any, logs: RunLogs, *,
                 build_image: BuildImage = pipeline.build_image) -> None:
        self.name = name
        self.library = settings.library
        self.logs = logs
        self._build_image = build_image

    def run_build(self, run_id: str, cancel: RunCancel) -> None:
        """Bring a claimed run to its end. Never raises: what went wrong is the run's end."""
        run = store.get_run(run_id)
        assert run is not None, "a claimed run exists"
        token = self.library.registry.token
        with self.logs.writer(run_id, (token,) if token else ()) as log:
            observer = _RunObserver(run_id, self.name, log, cancel)
            if run.attempts > 1:
                log.line(f"--- attempt {run.attempts}")
            try:
                self._work(run, observer, cancel)
            except Cancelled as error:
                self._ended_early(run_id, cancel, error, log)
            except CicError as error:
                self._failed(run_id, error.code, _explain(error), log)
            except Exception:
                logger.exception("a run failed inside the service", extra={"run": run_id})
                self._failed(run_id, ErrorCode.INTERNAL,
                             f"The service itself failed; its log tells why (run {run_id}).", log)

    def _work(self, run: Run, observer: _RunObserver, cancel: RunCancel) -> None:
        """Build for whoever asked first, then answer everybody who joined; who joins meanwhile is answered, too."""
        first: pipeline.BuildResult | None = None
        answered: dict[tuple[str, str | None, bool], pipeline.BuildResult] = {}
        while True:
            waiting = store.waiting_builds(run.id)
            for build in waiting:
                key = (build.image_id, build.filename, build.push)
                if key not in answered:
                    answered[key] = self._build(run, build, observer, cancel, reuse=first is not None)
                    first = first or answered[key]
                self._answer(build, answered[key])
            if first is None:  # everybody withdrew before the work began
                raise Cancelled("Nobody waits for this build any more.")
            if store.finish_run(run.id, observer.state, self.name, _result_row(first)):
                observer.line("--- FINISHED")
                return
            if not store.waiting_builds(run.id):
                cancel.check()
                raise Cancelled("The run is another worker's.")

    def _build(self, run: Run, build: Build, observer: _RunObserver, cancel: RunCancel, *,
               reuse: bool) -> pipeline.BuildResult:
        request = BuildRequest.model_validate(build.request)
        if reuse:  # the image is made: what is left are this build's own name, push and SIF
            request = request.model_copy(update={"force": False})
        own = {"image_id": build.image_id, "filename": build.filename, "push": build.push}
        inputs = Inputs.model_validate(run.inputs).model_copy(update=own)
        workspace = Path(self.library.build.tmp_folder) / "builds" / run.id
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                return self._build_image(request, settings=self.library, inputs=inputs, workspace=workspace,
                                         observer=observer, cancel=cancel)
            except Unavailable as error:
                if delay_s is None or error.code not in WORTH_A_RETRY:
                    raise
                observer.line(f"{error} Trying again in {delay_s:.0f} s.")
                cancel.wait(delay_s)
                cancel.check()
        raise AssertionError("the last try returns or raises")

    @staticmethod
    def _answer(build: Build, result: pipeline.BuildResult) -> None:
        store.end_builds([build.id], BuildState.FINISHED, sha256=result.sha256, size_bytes=result.size_bytes,
                         warnings=list(dict.fromkeys([*build.warnings, *result.warnings])))

    def _ended_early(self, run_id: str, cancel: RunCancel, error: Cancelled, log: LogWriter) -> None:
        if cancel.goes_back:
            log.line(f"--- {error.message}")
            store.hand_back(run_id, self.name)
        else:
            self._failed(run_id, ErrorCode.CANCELLED, error.message, log)

    def _failed(self, run_id: str, code: ErrorCode, message: str, log: LogWriter) -> None:
        log.line(f"--- FAILED: {code.value}: {message}")
        store.fail_run(run_id, self.name, code, message)
        logger.info("run failed", extra={"run": run_id, "code": code.value})


class _RunObserver:
    """Writes what the library tells into the run's log and row."""

    def __init__(self, run_id: str, worker: str, log: LogWriter, cancel: CancelToken) -> None:
        self.state = BuildState.STARTED
        self._run_id, self._worker, self._log, self._cancel = run_id, worker, log, cancel
        self._next_progress = 0.0

    def entered(self, state: BuildState) -> None:
        """Move the run on. Work for a second build of a run that got further leaves it where it is."""
        if not may_move(self.state, state) or state is BuildState.PENDING:
            return
        if not store.transition(self._run_id, self.state, state, worker=self._worker):
            self._cancel.cancel("The run is another worker's.")
            return
        self.state = state
        self._log.line(f"--- {state.value}")

    def progress(self, done: int, total: int, what: str) -> None:
        """Note how far the run is, a few times a second at the most."""
        now = time.monotonic()
        if now >= self._next_progress or done == total:
            self._next_progress = now + PROGRESS_INTERVAL_S
            store.set_progress(self._run_id, self._worker, done, total, what)

    def line(self, text: str) -> None:
        self._log.line(text)


def _result_row(result: pipeline.BuildResult) -> Mapping[str, Any]:
    return {"image_id": result.image_id, "filename": result.filename, "sha256": result.sha256,
            "size_bytes": result.size_bytes, "identity": result.identity, "pushed_digest": result.pushed_digest,
            "reused": result.reused, "audit": result.audit, "warnings": list(result.warnings)}


def _explain(error: CicError) -> str:
    """The message for the user: what happened, what to do, and the lines that matter."""
    excerpt = error.excerpt if isinstance(error, BuildFailed) else ()
    return "\n".join([str(error), *excerpt])
