"""Measure how quick lists of finished images are: `python3 -m benchmarks.images [--images N]`.

A store with that many images, whose records are as long as real ones, is listed by a store that has
just been opened, which reads every record, and by one that knows them already, as a server process
does from its second call on.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord

ROUNDS = 5
DETAILS = {
    "request": {
        "machine": {
            "platform": "linux/amd64",
            "architecture": "zen2",
            "container_engine": "singularity",
        },
        "workflow": "minimal_workflow",
        "step_id": "wordcount",
        "version": "latest",
    },
    "recipe": "1",
    "commit": "0" * 40,
    "audit": {
        "ok": True,
        "nodes": [
            {"name": f"package-{number}", "version": "1.0", "target": "zen2"}
            for number in range(40)
        ],
    },
    "labels": {f"cic.label.{number}": "value " * 5 for number in range(16)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = ImageStore(Path(folder))
        for number in range(options.images):
            _put(store, number)
        anew = _median_s(lambda: ImageStore(store.root).names())
        known = _median_s(store.names)
        one = _median_s(lambda: store.by_name("image-1.sif"))
        assert len(store.names()) == options.images
    print(f"{options.images} images, every record read: {anew * 1000:.0f} ms")
    print(
        f"{options.images} images, records known: {known * 1000:.0f} ms, ratio {anew / known:.1f}"
    )
    print(f"one image by its name: {one * 1000:.2f} ms")


def _put(store: ImageStore, number: int) -> None:
    """As `publish` and `point` leave them, without waiting for the disk at each of them."""
    content = str(number).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    store.path_of(sha256).write_bytes(content)
    record = ImageRecord(
        identity=sha256,
        image_id="a:1",
        platform="linux/amd64",
        filename=f"image-{number}.sif",
        sha256=sha256,
        size_bytes=len(content),
        details=DETAILS,
    )
    for path in (
        store.path_of(sha256).with_suffix(".json"),
        store.root / "names" / f"image-{number}.sif",
        store.root / "records" / f"{sha256}.json",
    ):
        path.write_text(record.model_dump_json())


def _median_s(work: Callable[[], object]) -> float:
    work()
    return statistics.median(_seconds(work) for _ in range(ROUNDS))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
