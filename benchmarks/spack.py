"""Measure what builds share, with real Spack: `python3 -m benchmarks.spack [--concurrent N]`.

`CIC_SPACK_ROOT` and `CIC_TEST_SPACK_BASE` name the Spack, as for the tests; without them nothing is
measured. The environment is fftw, lz4 and bzip2, from a mirror of Debian's source tarballs. Every
figure is a ratio of builds of one run; "cold" is a build with no layer, package or decision of an
earlier one, on a base that Spack has been prepared on.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.rows import Row, attempted, not_measured, show
from image_builder.state import BuildState
from tests.support.daemon_images import remove_images
from tests.support.recording import Heard
from tests.support.site import Site
from tests.support.spack_site import (
    MEASURED,
    SPACK_ROOT,
    Told,
    anew,
    build,
    environment,
    make_spack_site,
)

CONCURRENT = 10
SECOND, CHANGED, TOGETHER = (
    "second environment that shares all but one small package, of the first's time",
    "one changed source line, before conversion",
    "concurrent builds that share packages, of the longest alone and cold",
)
REUSE = (Row(SECOND, None, 0.10), Row(CHANGED, None, 5, " s"))
AT_ONCE = (Row(f"{CONCURRENT} {TOGETHER}", None, 2),)
"""The rows when there is nothing to tell."""

STARTED = re.compile(r"#(?P<step>\d+) \[.*\b(?:tools|site_tools|concretize|install|kept)\.sh")


@dataclasses.dataclass(frozen=True)
class Timed:
    """One build: how long it took, and its log."""

    seconds: float
    lines: Sequence[str]

    @property
    def told(self) -> Told:
        return Told.of(self.lines)

    @property
    def steps_of_spack(self) -> int:
        """Return how many steps ran that start Spack; layers that were there run nothing."""
        steps = {match["step"] for line in self.lines if (match := STARTED.match(line))}
        return len(steps - {line.split()[0][1:] for line in self.lines if line.endswith(" CACHED")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--concurrent", type=int, default=CONCURRENT, help="how many builds at once; 0: none"
    )
    show(rows(parser.parse_args().concurrent))


def rows(concurrent: int = CONCURRENT) -> list[Row]:
    """Return the figures of one run.

    A figure that fails is not measured, and its row gives the reason.
    """
    if SPACK_ROOT is None:
        return not_measured([*REUSE, *AT_ONCE], "CIC_SPACK_ROOT names no Spack")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        try:
            site = make_spack_site(Path(folder))
        except subprocess.CalledProcessError as error:
            return not_measured([*REUSE, *AT_ONCE], str(error))
        try:
            found = attempted(REUSE, lambda: reuse(site))
            return found + (
                attempted(AT_ONCE, lambda: [at_once(site, concurrent)]) if concurrent else []
            )
        finally:
            remove_images(site)


def reuse(site: Site) -> list[Row]:
    """Compare a second environment, and a changed source line, with a cold first environment."""
    site.add_step("spack", "prepare", environment(["tiny@12.0"]))
    timed(anew(site), "prepare")
    site.add_step("spack", "first", environment(MEASURED))
    site.add_step("spack", "second", environment([*MEASURED, "tiny@11.0"]))
    first, second = timed(site, "first"), timed(site, "second")
    site.add_step("spack", "first", {"run.sh": "#!/bin/sh\necho changed\n"})
    changed = timed(site, "first")
    assert second.told.compiled == ("tiny",), (
        f"the second environment compiled {second.told.compiled}"
    )
    assert changed.steps_of_spack == 0 and not changed.told.taken, (
        "Spack was started for a changed source line"
    )
    return [
        Row(
            SECOND,
            second.seconds / first.seconds,
            0.10,
            note=f"{second.seconds:.1f} s of {first.seconds:.1f} s",
        ),
        Row(CHANGED, changed.seconds, 5, " s", note="no Spack started"),
    ]


def at_once(site: Site, count: int) -> Row:
    """Compare concurrent builds that share caches with one of them with caches of its own.

    The builds differ in one small package.
    """
    steps = [f"at-once-{number}" for number in range(1, count + 1)]
    for number, step in enumerate(steps, 1):
        site.add_step("spack", step, environment([*MEASURED, f"tiny@{number}.0"]))
    alone = timed(anew(site), steps[0])
    shared = anew(site)
    begun = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        builds = list(pool.map(lambda step: timed(shared, step), steps))
    seconds = time.perf_counter() - begun
    compiled = Counter(name for one in builds for name in one.told.compiled)
    assert compiled.pop("tiny") == count and set(compiled.values()) == {1}, (
        f"compiled twice: {compiled}"
    )
    return Row(
        f"{count} {TOGETHER}",
        seconds / alone.seconds,
        2,
        note=f"{seconds:.0f} s of {alone.seconds:.0f} s; nothing compiled twice",
    )


def timed(site: Site, step: str) -> Timed:
    """Time one build of a step, in a folder of its own."""
    heard = Heard()
    begun = time.perf_counter()
    build(site, step, heard, workspace=f"workspace-{step}")
    seconds = time.perf_counter() - begun
    assert heard.states[-1] is BuildState.BUILDING, "it was built, and not converted"
    return Timed(seconds, heard.lines)


if __name__ == "__main__":
    main()
