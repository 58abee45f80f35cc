"""Measure how fast an image becomes a SIF, by several ways: `python3 -m benchmarks.conversion`.

Against `apptainer build` with its defaults, against the same with our compressor and level, and
against the bare stream `docker export | tar2sqfs`, which checks nothing and makes no SIF. Our time
includes every check, the hash, and publishing in a store.

The image is what a build with real Spack makes (`CIC_SPACK_ROOT`), or an image of this machine's
own programs and libraries; no network is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import slim
from benchmarks.archive import write_archive
from benchmarks.rows import Row, show
from image_builder.docker import daemon
from image_builder.settings import BuildSettings
from image_builder.sif import convert, flow
from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with contextlib.ExitStack() as stack:
        image = options.image or stack.enter_context(_image(int(options.size_gb * 1e9)))
        result = run(
            image,
            rounds=options.rounds,
            builds=options.builds,
            folder=options.folder,
            settings=settings_for(options.compressor, options.level),
        )
    rows = goals(result)
    _print(result, rows)
    if options.json:
        options.json.write_text(
            json.dumps({**result, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1)
        )
    return 0 if all(row.verdict != "missed" for row in rows) else 1


def rows() -> list[Row]:
    """Return the figures of 1 GB with the default settings.

    It is what a build makes if there is a real Spack, else files of this machine.
    """
    with contextlib.ExitStack() as stack:
        try:
            image = slim.built(stack.enter_context(slim.site_with_spack()), slim=False)
            what = "full image of fftw, lz4 and bzip2"
        except slim.NoSpack:
            image, what = stack.enter_context(_image(int(1e9))), "image of large files"
        result = run(image, rounds=3, builds=1, folder=None, settings=settings_for("zstd", None))
    note = f"{what}, {result['image_bytes'] / 1e9:.1f} GB"
    return [
        dataclasses.replace(row, what=f"conversion: {row.what}", note=note) for row in goals(result)
    ]


def run(
    image: str, *, rounds: int, builds: int, folder: Path | None, settings: BuildSettings
) -> dict[str, Any]:
    """Measure an image that the daemon has."""
    with tempfile.TemporaryDirectory(prefix="cic-benchmark-", dir=folder) as scratch:
        return measure(image, Path(scratch), rounds=rounds, builds=builds, settings=settings) | {
            "image_bytes": daemon.image_bytes(image) or 0
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the conversion of an image to a SIF.")
    parser.add_argument(
        "--image", help="an image that the daemon has (default: one of this machine's own files)"
    )
    parser.add_argument(
        "--size-gb", type=float, default=1.2, help="size of an image of files (default: 1.2)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often all but the slowest run (default: 3)"
    )
    parser.add_argument(
        "--builds",
        type=int,
        default=1,
        help="how often `build` with its defaults runs (default: 1)",
    )
    parser.add_argument("--compressor", default="zstd")
    parser.add_argument("--level", type=int, default=None)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; the store's disk is what counts"
    )
    parser.add_argument("--json", type=Path, default=None, help="write the figures there too")
    return parser


def settings_for(compressor: str, level: int | None) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "tmp_folder": "/nonexistent",
            "builder_home": "/nonexistent",
            "base_image": "none",
            "sif_compressor": compressor,
            "sif_compression_level": level,
        }
    )


def measure(
    image: str, folder: Path, *, rounds: int, builds: int, settings: BuildSettings
) -> dict[str, Any]:
    """Return the times of all four ways in seconds, and our peaks in bytes.

    All but the slowest take turns.
    """
    ours, bare, same = [], [], []
    peaks = Peaks()
    sif_bytes = 0
    for turn in range(rounds):
        bare.append(_timed(lambda: _bare(image, folder / "bare", settings)))
        watched = _Watch(folder / "store") if turn == 0 else contextlib.nullcontext(peaks)
        with watched as peaks:
            seconds, sif_bytes = _convert(image, folder / "store", settings)
        ours.append(seconds)
        same.append(
            _timed(lambda: _build(image, folder / "same", convert.mksquashfs_arguments(settings)))
        )
    default = [_timed(lambda: _build(image, folder / "default", None)) for _ in range(builds)]
    return {
        "compression": convert.mksquashfs_arguments(settings),
        "sif_bytes": sif_bytes,
        "ours_s": ours,
        "bare_s": bare,
        "build_same_s": same,
        "build_default_s": default,
        "cores": os.cpu_count(),
        "peak_memory_bytes": peaks.memory_bytes,
        "peak_disk_bytes": peaks.disk_bytes,
    }


def goals(result: dict[str, Any]) -> list[Row]:
    ours = statistics.median(result["ours_s"])

    def against(name: str) -> float | None:
        return ours / statistics.median(result[name]) if result[name] else None

    return [
        Row("time against `apptainer build`, default settings", against("build_default_s"), 0.15),
        Row(
            "time against `apptainer build`, same compressor and level",
            against("build_same_s"),
            0.3,
        ),
        Row("time against bare `docker export | tar2sqfs`, same level", against("bare_s"), 1.3),
        Row("peak memory of all processes", result["peak_memory_bytes"] / 1024**2, 512, " MB"),
        Row(
            "temporary disk against the SIF's size",
            result["peak_disk_bytes"] / result["sif_bytes"] - 1,
            1.0,
        ),
    ]


def _print(result: dict[str, Any], rows: Sequence[Row]) -> None:
    print(
        f"Image of {result['image_bytes'] / 1e9:.2f} GB, SIF of {result['sif_bytes'] / 1e9:.2f} GB, "
        f"{result['compression']}, {result['cores']} cores\n"
    )
    for name, title in (
        ("build_default_s", "apptainer build, default settings"),
        ("build_same_s", "apptainer build, same compressor and level"),
        ("bare_s", "docker export | tar2sqfs"),
        ("ours_s", "ours"),
    ):
        times = result[name]
        print(
            f"{title:45} {statistics.median(times):7.1f} s"
            if times
            else f"{title:45} not measured",
            f"  ({', '.join(f'{value:.1f}' for value in times)})" if len(times) > 1 else "",
        )
    print()
    show(rows)


def _timed(work: Callable[[], object]) -> float:
    os.sync()  # what the one before wrote is written: each begins with an idle disk
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _convert(image: str, root: Path, settings: BuildSettings) -> tuple[float, int]:
    """Our way, from the image in the daemon to the SIF in a store."""
    store = ImageStore(root)
    os.sync()
    begin = time.monotonic()
    with store.temporary_path() as temporary:
        made = convert.convert(image, temporary, platform=_platform(image), settings=settings)
        record = store.publish(
            temporary,
            ImageRecord(identity="0" * 64, image_id=image, platform="-", filename="benchmark.sif"),
            sha256=made.sha256,
        )
    seconds = time.monotonic() - begin
    if made.method != convert.STREAM:
        raise SystemExit(
            "the image was not streamed: are tar2sqfs, sqfs2tar and unsquashfs installed?"
        )
    assert record.sha256 is not None
    store.remove(record.sha256)
    return seconds, made.size_bytes


def _platform(image: str) -> str:
    return subprocess.run(
        ["docker", "inspect", "--format={{.Os}}/{{.Architecture}}", image],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def _bare(image: str, target: Path, settings: BuildSettings) -> None:
    container = subprocess.run(
        ["docker", "create", image, "none"], check=True, capture_output=True, text=True
    ).stdout.strip()
    command = flow.squashfs_command(target, convert.level(settings), settings, time_s=0)
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
            subprocess.run(command.argv, check=True, stdin=export.stdout, stdout=subprocess.DEVNULL)
    finally:
        subprocess.run(["docker", "rm", container], check=True, capture_output=True)
        target.unlink(missing_ok=True)


def _build(image: str, folder: Path, mksquashfs_arguments: str | None) -> None:
    """Apptainer's own way, with a cache and temporary files of its own."""
    folder.mkdir()
    options = ["--mksquashfs-args", mksquashfs_arguments] if mksquashfs_arguments else []
    environment = {
        f"{prefix}_{name}": str(folder)
        for prefix in ("APPTAINER", "SINGULARITY")
        for name in ("TMPDIR", "CACHEDIR")
    }
    try:
        subprocess.run(
            [
                convert.program(),
                "build",
                *options,
                str(folder / "made.sif"),
                f"docker-daemon:{image}",
            ],
            check=True,
            capture_output=True,
            env=os.environ | environment,
        )
    finally:
        shutil.rmtree(folder)


@dataclasses.dataclass
class Peaks:
    memory_bytes: int = 0
    disk_bytes: int = 0


class _Watch:
    """Samples what our process and its children take, and the size of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._done, self.peaks = folder, threading.Event(), Peaks()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self.peaks

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.05):
            self.peaks.memory_bytes = max(self.peaks.memory_bytes, _tree_memory_bytes(os.getpid()))
            self.peaks.disk_bytes = max(self.peaks.disk_bytes, _disk_bytes(self._folder))


def _tree_memory_bytes(pid: int) -> int:
    try:
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = [
            child
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, IndexError):
        return 0
    return total + sum(_tree_memory_bytes(int(child)) for child in children)


def _disk_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_blocks * 512
    return total


@contextlib.contextmanager
def _image(size_bytes: int) -> Iterator[str]:
    """An image of this machine's own files, of about `size_bytes`; removed at the end.

    Its first GB are rather few files and large ones, which `apptainer build` unpacks more easily
    than those of a build.
    """
    name = f"cic-benchmark:{uuid.uuid4().hex}"
    importer = subprocess.Popen(
        ["docker", "import", "--change=CMD /bin/true", "-", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert importer.stdin is not None
    write_archive(importer.stdin, size_bytes)
    importer.stdin.close()
    if importer.wait() != 0:
        raise SystemExit("docker import failed")
    try:
        yield name
    finally:
        subprocess.run(["docker", "rmi", "--force", name], capture_output=True)


if __name__ == "__main__":
    raise SystemExit(main())
