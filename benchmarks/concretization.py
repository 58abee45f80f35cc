"""Measure what a concretization costs: `python3 -m benchmarks.concretization`.

`CIC_BENCHMARK_BASES` names two base images, the older Spack's first: `spack_base:0.23 spack_base:1.2`.
In each, Spack concretizes fftw, lz4, bzip2 and openmpi with the indexes that the base image brings;
1.2 once more with what its own cache then holds. The older one is without mimalloc, as its bases
were when the goal was set, and concretizes with all packages, as builds with it do. The CPU time of
all processes counts, and the least of several runs.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Row, attempted, not_measured, show

NEWER, CACHED = (
    "concretization of a new environment (fftw, lz4, bzip2, openmpi), CPU time with 1.2 against 0.23",
    "the same when 1.2's own cache has it",
)
RECIPE = Path(__file__).resolve().parents[1] / "image_builder" / "recipes" / "1"
UNKNOWN = (Row(NEWER, None, 0.6), Row(CACHED, None, 0.2))
REPEATED = 3
ENVIRONMENT = """\
spack:
  specs: [fftw, lz4, bzip2, openmpi@4]
  packages:
    all: {require: ["target=haswell"], providers: {mpi: [openmpi]}}
    mpi: {require: ["openmpi@4"]}
  concretizer:
    unify: true
    reuse: false
    targets: {granularity: microarchitectures, host_compatible: false}
  view: /opt/view
"""
INSIDE = """\
import json, os, resource, subprocess, sys
text, repeated, cached = sys.stdin.read(), int(sys.argv[1]), sys.argv[2] == "cached"
os.makedirs("/run/cic")
for name in os.listdir("/recipe"):
    os.symlink("/recipe/" + name, "/run/cic/" + name)
if sys.argv[2] == "before":
    subprocess.run("rm -f /usr/lib/*/libmimalloc* /run/cic/fewer_packages.py", shell=True, check=True)
if cached:
    os.mkdir("/run/cic/solutions")
told = []
for number in range(repeated):
    with open("/run/cic/spack.yaml", "w") as file:
        file.write("# %d\\n" % number + text)
    subprocess.run(["rm", "-rf", os.path.expanduser("~/.spack/cache/concretization"), "/opt/cic"])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["sh", "/run/cic/concretize.sh"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
print(json.dumps(told))
"""
"""The recipe's own script runs, as in a build."""


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the figures of one run.

    A figure that fails is not measured, and its row gives the reason.
    """
    bases = os.environ.get("CIC_BENCHMARK_BASES", "").split()
    if len(bases) != 2:
        return not_measured([*UNKNOWN], "CIC_BENCHMARK_BASES names no two base images")
    return attempted(UNKNOWN, lambda: compared(*bases))


def compared(older: str, newer: str) -> list[Row]:
    before, fresh = min(seconds(older, "before")), min(seconds(newer, "fresh"))
    first, *later = seconds(newer, "cached")
    return [
        Row(NEWER, fresh / before, 0.6, note=f"{fresh:.1f} s of {before:.1f} s"),
        Row(CACHED, min(later) / before, 0.2, note=f"{min(later):.1f} s; {first:.1f} s before"),
    ]


def seconds(base: str, how: str) -> Sequence[float]:
    """Return the CPU time of each of several concretizations in a container of the base image.

    `how`: "fresh", "cached" by Spack's own cache, or "before" there was mimalloc.
    """
    command = ["docker", "run", "--rm", "--interactive", "--network=none"]
    command += [f"--volume={RECIPE}:/recipe:ro", base, "python3", "-c"]
    arguments = [INSIDE, str(REPEATED), how]
    done = subprocess.run(
        [*command, *arguments], input=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    told: list[float] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    main()
