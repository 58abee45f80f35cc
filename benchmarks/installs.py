"""Measure cold builds with the newest Spack against an earlier one: `python3 -m benchmarks.installs`.

`CIC_BENCHMARK_BASES` names two base images, the older Spack's first, as for
`benchmarks.concretization`; `CIC_SPACK_SOURCES` is a source mirror with all that `WIDE` needs beside
Debian's tarballs; `CIC_BENCHMARK_BEFORE` may name a checkout of this project before it built packages
side by side (d193918^), with which the older Spack is used then. Cold: no layer, package or decision
of an earlier build, on a base that Spack has been prepared on. "By hand" is a plain Dockerfile with
the older Spack, which installs one package after the other, and `apptainer build`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row, attempted, not_measured, show
from tests.support.spack_site import MEASURED, REAL_SPACK

PROJECT = Path(__file__).resolve().parents[1]
BUILD = Path(__file__).with_name("timed_build.py")
WIDE = (
    *MEASURED,
    "lzo@2.10",
    "jansson@2.14",
    "libffi@3.4.4",
    "xxhash@0.8.1",
    "libassuan@2.5.5",
    "libgpg-error@1.46",
    "glpk@5.0",
    "snappy@1.1.9",
    "numactl@2.0.16",
    "jsoncpp@1.9.5",
    "libtasn1@4.19.0",
    "libsigsegv@2.14",
    "muparserx@4.0.12",
    "nlopt@2.7.1~python~octave~guile",
)
"""Libraries that need little of each other: Spack may build most of them at once."""
COLD, BUSY, SIF = (
    f"{len(WIDE)} packages with a wide graph, cold, 1.2 against 0.23 as built before",
    "processors busy during its install with 1.2, from the first compile to the last",
    "request to SIF, cold, fftw, lz4, bzip2, against 0.23 by hand",
)
UNKNOWN = (Row(COLD, None, 0.75), Row(BUSY, None, 0.9, at_least=True), Row(SIF, None, 0.6))
BY_HAND = """\
FROM {base}
COPY catalogue /catalogue
COPY spack.yaml /environment/spack.yaml
RUN --mount=type=bind,from=mirror,target=/mirror spack compiler find && spack external find && \\
    spack repo add --scope site /catalogue && spack mirror add sources file:///mirror && \\
    spack -e /environment concretize && spack -e /environment install -j 2
"""
ENVIRONMENT = """\
spack:
  specs: [{specs}]
  packages:
    all: {{require: ["target=haswell"]}}
  concretizer:
    unify: true
    reuse: false
    targets: {{granularity: microarchitectures, host_compatible: false}}
  view: /opt/view
"""


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
    bases = os.environ.get("CIC_BENCHMARK_BASES", "").split()
    if len(bases) != 2 or "CIC_SPACK_SOURCES" not in os.environ:
        return not_measured(
            [*UNKNOWN], "CIC_BENCHMARK_BASES names no two base images, or CIC_SPACK_SOURCES none"
        )
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        mirror = Path(folder) / "mirror"
        subprocess.run([str(REAL_SPACK / "source_mirror"), str(mirror)], check=True)
        older, newer = bases
        return [
            *attempted(UNKNOWN[:2], lambda: wide(older, newer, mirror)),
            *attempted(UNKNOWN[2:], lambda: [to_sif(older, newer, mirror, Path(folder))]),
        ]


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


def to_sif(older: str, newer: str, mirror: Path, folder: Path) -> Row:
    """Compare a request for a SIF with what a plain Dockerfile and Apptainer take."""
    ours = built(newer, mirror, "singularity", MEASURED).seconds
    plain = by_hand(older, mirror, folder)
    return Row(SIF, ours / plain, 0.6, note=f"{ours:.0f} s of {plain:.0f} s")


def built(
    base: str, mirror: Path, engine: str, specs: tuple[str, ...], *, project: Path = PROJECT
) -> Timed:
    """Return what a build from nothing takes, after one that prepares the base."""
    _timed(base, mirror, engine, ("tiny@12.0",), project)
    return _timed(base, mirror, engine, specs, project)


def _timed(base: str, mirror: Path, engine: str, specs: tuple[str, ...], project: Path) -> Timed:
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


def by_hand(base: str, mirror: Path, folder: Path) -> float:
    """Return the seconds that a plain Dockerfile with Spack and `apptainer build` take."""
    image = f"cic-by-hand:{secrets.token_hex(4)}"
    context = folder / "by-hand"
    context.mkdir()
    subprocess.run(["cp", "-R", str(REAL_SPACK / "catalogue"), str(context)], check=True)
    (context / "spack.yaml").write_text(ENVIRONMENT.format(specs=", ".join(MEASURED)), "utf-8")
    (context / "Dockerfile").write_text(BY_HAND.format(base=base), "utf-8")
    build = ["docker", "buildx", "build", "--no-cache", "--load", "--progress=plain", "--quiet"]
    begun = time.perf_counter()
    try:
        subprocess.run(
            [*build, f"--build-context=mirror={mirror}", f"--tag={image}", str(context)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        sif = folder / "by-hand.sif"
        command = ["apptainer", "build", str(sif), f"docker-daemon://{image}"]
        subprocess.run(command, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"{error.cmd[0]} failed: {error.stderr or ''}") from None
    finally:
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
