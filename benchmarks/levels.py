"""Measure what a level of compression costs and saves: `python3 -m benchmarks.levels`.

The same archive of this machine's own programs and libraries is made into squashfs at each level,
in turns, as a conversion does it. Time and size are given relative to those of the level that a
conversion takes by itself.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.archive import write_archive
from benchmarks.conversion import settings_for
from image_builder.sif import convert, flow

LEVELS = {"zstd": (1, 2, 3, 6, 9, 15), "gzip": (1, 3, 6, 9)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the levels of compression.")
    parser.add_argument(
        "--size-gb", type=float, default=1.0, help="size of the archive (default: 1.0)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often each level runs (default: 3)"
    )
    parser.add_argument("--compressor", choices=sorted(LEVELS), default="zstd")
    options = parser.parse_args(arguments)
    chosen = convert.DEFAULT_LEVELS[options.compressor]
    levels = LEVELS[options.compressor]
    cpu_s: dict[int, list[float]] = {level: [] for level in levels}
    size_bytes = dict.fromkeys(levels, 0)
    with tempfile.TemporaryDirectory(prefix="cic-benchmark-") as folder:
        archive, made = Path(folder, "files.tar"), Path(folder, "made.squashfs")
        with archive.open("wb") as file:
            write_archive(file, int(options.size_gb * 1e9))
        for _ in range(options.rounds):
            for level in levels:
                cpu_s[level].append(_compress(archive, made, options.compressor, level))
                size_bytes[level] = made.stat().st_size
    base_s = statistics.median(cpu_s[chosen])
    print(
        f"{options.compressor}, {os.cpu_count()} cores, against level {chosen} ({base_s:.1f} s of CPU time, "
        f"{size_bytes[chosen] / 1e6:.0f} MB)\n\nlevel  CPU time   size"
    )
    for level in levels:
        size = size_bytes[level] / size_bytes[chosen]
        print(f"{level:5} {statistics.median(cpu_s[level]) / base_s:9.2f} {size:6.3f}")
    return 0


def _compress(archive: Path, made: Path, compressor: str, level: int) -> float:
    """Seconds of CPU time, on all cores together, that the archive takes to become squashfs."""
    settings = settings_for(compressor, level)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with archive.open("rb") as file:
        subprocess.run(
            flow.squashfs_command(made, level, settings, time_s=0).argv,
            check=True,
            stdin=file,
            stdout=subprocess.DEVNULL,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
