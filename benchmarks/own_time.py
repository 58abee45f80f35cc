"""Measure what the service itself takes of a build: `python3 -m benchmarks.own_time`.

The time from the request until FINISHED, less what buildx and the conversion took. The conversion takes
the image's files while the service reads them for its own checks, which counts as conversion until
all are read. Git is counted as ours, so the figure is an upper bound. Needs Docker, Apptainer and the base image of the
tests.
"""

from __future__ import annotations

import base64
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, show
from image_builder.host import process
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Completed, LineSink
from image_builder.sif import convert as sif_convert
from image_builder.sif.begun import BegunSif
from service.app import create_app
from tests.support.daemon_images import remove_images
from tests.support.site import MACHINE, PASSWORD, USER, add_user, make_site

BUILDS = 5


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the median of some builds."""
    own, whole = measure()
    return [
        Row(
            "service's own time in a build, git included",
            statistics.median(own),
            0.5,
            " s",
            note=f"of {statistics.median(whole):.1f} s",
        )
    ]


class Others:
    """Adds up the time in which something works that is not ours."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._working = 0
        self._since = 0.0
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            if not self._working:
                self._since = time.monotonic()
            self._working += 1

    def end(self) -> None:
        with self._lock:
            self._working -= 1
            if not self._working:
                self.seconds += time.monotonic() - self._since

    def timed(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.begin()
        try:
            return work(*arguments, **named)
        finally:
            self.end()

    @contextlib.contextmanager
    def until_all_is_taken(self, begin: AbstractContextManager[BegunSif | None]) -> Iterator[Any]:
        """Count what is begun as working until it has all files of the image."""
        with begin as begun:
            if begun is None:
                yield None
                return
            taken = begun.end

            def end() -> None:
                taken()
                self.end()

            begun.end = end  # type: ignore[method-assign]
            self.begin()
            yield begun


def measure() -> tuple[list[float], list[float]]:
    """Return our own seconds, and all seconds, of each build."""
    others = Others()

    def runner(
        command: Command,
        *,
        on_line: LineSink | None = None,
        cancel: CancelToken | None = None,
        capture_stdout: bool = False,
    ) -> Completed:
        made: Completed = others.timed(
            process.run, command, on_line=on_line, cancel=cancel, capture_stdout=capture_stdout
        )
        return made

    convert, begin = sif_convert.convert, sif_convert.begin
    sif_convert.convert = lambda *arguments, **named: others.timed(convert, *arguments, **named)
    sif_convert.begin = lambda *arguments, **named: others.until_all_is_taken(
        begin(*arguments, **named)
    )
    own, whole = [], []
    with tempfile.TemporaryDirectory() as root:
        site = make_site(Path(root))
        for turn in range(BUILDS):
            site.add_step(
                "demo", f"step-{turn}", {"eflows4hpc.yaml": "apt: []\n", "turn": str(turn)}
            )
        add_user(site, USER, PASSWORD)
        app = create_app(site.settings, runner=runner)
        app.extensions["cic"].executor.start()
        client = app.test_client()
        try:
            for turn in range(BUILDS):
                others.seconds = 0.0
                seconds = _build(client, f"step-{turn}")
                whole.append(seconds)
                own.append(seconds - others.seconds)
        finally:
            app.extensions["cic"].executor.shutdown()
            sif_convert.convert, sif_convert.begin = convert, begin
            remove_images(site)
    return own, whole


def _build(client: Any, step: str) -> float:
    headers = {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    asked = {"machine": MACHINE, "workflow": "demo", "step_id": step, "push": False}
    begun = time.monotonic()
    answer = client.post("/image_creation/build/", json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    while True:
        status = client.get(f"/image_creation/build/{answer.json['id']}", headers=headers).json
        if status["status"] in ("FINISHED", "FAILED"):
            assert status["status"] == "FINISHED", status
            return time.monotonic() - begun
        threading.Event().wait(0.02)


if __name__ == "__main__":
    main()
