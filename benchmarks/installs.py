"""Measure cold builds with the newest Spack against an earlier one: `python3 -m benchmarks.installs`.

`CIC_BENCHMARK_BASES` names two base images, the older Spack's first, as for
`benchmarks.concretization`; `CIC_SPACK_SOURCES` is a source mirror with what Spack needs beside
Debian's tarballs: compiler-wrapper's for 1.2; `CIC_BENCHMARK_BEFORE` may name a checkout of this
project before it built packages side by side (d193918^), with which the older Spack is used then.
Cold: no layer, package or decision of an earlier build, on a base that Spack has been prepared on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.rows import Row, attempted, not_measured, show
from tests.support.spack_site import MEASURED, REAL_SPACK

PROJECT = Path(__file__).resolve().parents[1]
BUILD = Path(__file__).with_name("timed_build.py")
WIDE = (
    *MEASURED,
    "lzo@2.10",
    "jansson@2.14",
    "xxhash@0.8.1",
    "libassuan@2.5.5",
    "libgpg-error@1.46",
    "glpk@5.0",
    "numactl@2.0.16",
    "jsoncpp@1.9.5",
    "libtasn1@4.19.0",
    "libsigsegv@2.14",
    "nlopt@2.7.1~python~octave~guile",
)
"""Libraries that need little of each other: Spack may build most of them at once."""
SOURCES = (
    "lzo2=2.10",
    "jansson=2.14",
    "xxhash=0.8.1",
    "libassuan=2.5.5",
    "libgpg-error=1.46",
    "glpk=5.0",
    "numactl=2.0.16",
    "libjsoncpp=1.9.5",
    "libtasn1-6=4.19.0",
    "libsigsegv=2.14",
    "nlopt=2.7.1",
)
"""Debian's names and versions of their sources, beside those that the tests need."""
COLD, BUSY = (
    f"{len(WIDE)} packages with a wide graph, cold, 1.2 against 0.23 as built before",
    "processors busy during its install with 1.2, from the first compile to the last",
)
MISSING = "CIC_BENCHMARK_BASES names no two base images, or CIC_SPACK_SOURCES no mirror"
UNKNOWN = (Row(COLD, None, 0.75), Row(BUSY, None, 0.9, at_least=True))


@dataclasses.dataclass(frozen=True)
class Timed:
    """One build: how long it took, and how busy the processors were while it compiled."""

    seconds: float
    busy: float | None


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the figures of one run.

    A figure that fails is not measured, and its row gives the reason.
    """
    return with_two_bases(UNKNOWN, wide)


def with_two_bases(
    wanted: Sequence[Row], measure: Callable[[str, str, Path], list[Row]]
) -> list[Row]:
    """Return what is measured with the older base image, the newer one and a mirror of sources.

    Without these, they are the `wanted` rows with what is missing.
    """
    bases = os.environ.get("CIC_BENCHMARK_BASES", "").split()
    if len(bases) != 2 or "CIC_SPACK_SOURCES" not in os.environ:
        return not_measured(wanted, MISSING)
    older, newer = bases
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        mirror = Path(folder) / "mirror"
        subprocess.run([str(REAL_SPACK / "source_mirror"), str(mirror), *SOURCES], check=True)
        return attempted(wanted, lambda: measure(older, newer, mirror))


def wide(older: str, newer: str, mirror: Path) -> list[Row]:
    """Compare a wide environment with the newer Spack with the same as it was built before."""
    before = Path(os.environ.get("CIC_BENCHMARK_BEFORE", PROJECT))
    first = built(older, mirror, "docker", WIDE, project=before)
    second = built(newer, mirror, "docker", WIDE)
    note = f"{second.seconds:.0f} s of {first.seconds:.0f} s"
    if before == PROJECT:
        note += "; built side by side with both"
    was_busy = "" if first.busy is None else f"before: {first.busy:.2f}"
    return [
        Row(COLD, second.seconds / first.seconds, 0.75, note=note),
        Row(BUSY, second.busy, 0.9, at_least=True, note=was_busy),
    ]


def built(
    base: str, mirror: Path, engine: str, specs: tuple[str, ...], *, project: Path = PROJECT
) -> Timed:
    """Return what a build from nothing takes, after one that prepares the base."""
    done = subprocess.run(
        [sys.executable, str(BUILD), str(mirror), engine, *specs],
        cwd=project,
        env={**os.environ, "CIC_TEST_SPACK_BASE": base},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-1:])
    told = json.loads(done.stdout.splitlines()[-1])
    return Timed(told["seconds"], told["busy"])


if __name__ == "__main__":
    main()
