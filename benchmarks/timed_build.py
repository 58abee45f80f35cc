"""Build one environment from nothing, and tell how long: `timed_build.py MIRROR ENGINE SPEC...`.

A program of its own, so that `benchmarks.installs` can run it in an earlier checkout of this project
too: the folder it is started in is the project that builds. `CIC_TEST_SPACK_BASE` names the base
image, MIRROR is a source mirror. A small build before prepares what is done once for a base image.
Prints one line of JSON at the end.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import build_image
from image_builder.request.parsing import parse_request
from image_builder.state import BuildState
from tests.support.daemon_images import remove_images
from tests.support.site import Site, make_site
from tests.support.spack_site import REAL_SPACK, SPACK_BASE, anew, environment

COMPILING = re.compile(
    r"==> \S+: Executing phase: |\[ \] [a-z0-9]{7} \S+@\S+ (?:autoreconf|configure|cmake|edit|build|install)\b"
)
INSTALLED = re.compile(r"\[\+\] ")


def processor_seconds() -> tuple[float, float]:
    """Return the seconds that all processors of this machine were busy, and all their seconds."""
    words = Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:9]
    values = [int(word) / 100 for word in words]  # the kernel counts in hundredths
    return sum(values) - values[3] - values[4], sum(values)


class Clock:
    """An observer that remembers when packages were compiled, and how busy the processors were."""

    def __init__(self) -> None:
        self.first: tuple[float, float] | None = None
        self.last: tuple[float, float] | None = None
        self.begun: dict[str, float] = {}

    def entered(self, state: BuildState) -> None:
        self.begun[state.value] = time.perf_counter()

    def progress(self, done: int, total: int, what: str) -> None:
        pass

    def line(self, text: str) -> None:
        print(text, file=sys.stderr)
        if self.first is None and COMPILING.search(text):
            self.first = processor_seconds()
        if INSTALLED.search(text):
            self.last = processor_seconds()

    def span(self, span: object) -> None:
        pass

    @property
    def busy(self) -> float | None:
        """Return the share of the processors' time that was used, from first to last compile."""
        if self.first is None or self.last is None:
            return None
        used, all_of_them = (
            last - first for first, last in zip(self.first, self.last, strict=True)
        )
        return used / all_of_them


def main(engine: str, *specs: str) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        root = Path(folder)
        shutil.copytree(REAL_SPACK / "catalogue", root / "catalogue")
        site = anew(
            make_site(root).with_environ(
                CIC_BUILD_BASE_IMAGE=SPACK_BASE,
                CIC_BUILD_BUILD_JOBS=str(os.cpu_count()),  # as cic_builder.py has them
                CIC_BUILD_SPACK_MIRROR=sys.argv[1],
                CIC_REPOSITORIES_SOFTWARE_REPOSITORY=str(root / "catalogue"),
            )
        )
        site.add_step("spack", "prepare", environment(["tiny@12.0"]))
        site.add_step("spack", "timed", environment(specs))
        machine = {
            "platform": "linux/amd64",
            "architecture": "haswell",
            "container_engine": engine,
        }
        fields = {"machine": machine, "workflow": "spack", "push": False}
        clock = Clock()
        try:
            build(site, {**fields, "step_id": "prepare"}, root / "prepared", Clock())
            begun = time.perf_counter()
            build(anew(site), {**fields, "step_id": "timed"}, root / "workspace", clock)
        finally:
            remove_images(site)
        ended = time.perf_counter()
        starts = [*clock.begun.items(), ("", ended)]
        phases = {
            name: round(next_at - at, 1) for (name, at), (_, next_at) in itertools.pairwise(starts)
        }
        print(json.dumps({"seconds": ended - begun, "busy": clock.busy, "phases": phases}))


def build(site: Site, fields: dict[str, object], workspace: Path, clock: Clock) -> None:
    build_image(
        parse_request(fields),
        settings=site.settings.library,
        workspace=workspace,
        observer=clock,
        cancel=CancelToken(),
    )


if __name__ == "__main__":
    main(*sys.argv[2:])
