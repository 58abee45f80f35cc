"""A worker whose builds wait rather than compute: `builder_worker.py` with a fake in the place of
the pipeline.

CIC_TEST_WAIT_S says for how long, and CIC_TEST_JOURNAL names the file in which every beginning and
end is noted.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from config import load_settings
from image_builder.host.cancellation import CancelToken
from image_builder.observer import Observer
from image_builder.pipeline import BuildResult
from image_builder.plan.inputs import Inputs
from image_builder.plan.resolve import resolve
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from image_builder.state import BuildState
from service.console import log_to_stderr
from service.workers.celery_worker import WorkerMain
from service.workers.pool import prepare_process


class WaitingBuilder:
    """Stands in for `pipeline.build_image`: real states and log lines, a wait, and no image."""

    def __init__(self, name: str, journal: Path, wait_s: float) -> None:
        self._name, self._journal, self._wait_s = name, journal, wait_s

    def __call__(
        self,
        request: BuildRequest,
        *,
        settings: LibrarySettings,
        workspace: Path,
        observer: Observer,
        cancel: CancelToken,
        inputs: Inputs | None = None,
        **_: object,
    ) -> BuildResult:
        observer.entered(BuildState.STARTED)
        pinned = inputs or resolve(request, settings)
        self._note("begin", workspace.name)
        try:
            observer.entered(BuildState.BUILDING)
            end = time.monotonic() + self._wait_s
            while time.monotonic() < end:
                observer.line(f"waiting on {self._name}")
                cancel.check()
                time.sleep(min(0.5, max(0.0, end - time.monotonic())))
            observer.line("waited")
        except BaseException:
            self._note("stop", workspace.name)
            raise
        self._note("end", workspace.name)
        return BuildResult(
            image_id=pinned.image_id,
            identity=pinned.identity or "sha256:" + "0" * 64,
            filename=None,
            sif_path=None,
            sha256=None,
            size_bytes=None,
            pushed_digest=None,
            reused=False,
            audit=None,
            warnings=pinned.warnings,
        )

    def _note(self, what: str, run_id: str) -> None:
        with self._journal.open("a") as file:
            file.write(f"{time.time():.3f} {self._name} {what} {run_id}\n")


def main() -> int:
    settings = load_settings()
    prepare_process(settings)
    log_to_stderr()
    builder = WaitingBuilder(
        os.environ["CIC_TEST_NAME"],
        Path(os.environ["CIC_TEST_JOURNAL"]),
        float(os.environ["CIC_TEST_WAIT_S"]),
    )
    return WorkerMain(settings, build_image=builder).run()


if __name__ == "__main__":
    sys.exit(main())
