"""Measure how soon it is known whether an image runs on a machine: `python3 -m benchmarks.answers`.

A service answers `check` and `script` of one stored image, on machines of the catalogue in turn and
over one connection, after a first round that is not counted. Needs nothing but the service.
"""

from __future__ import annotations

import http.client
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.rows import Row, show
from image_builder.docker import label_names
from image_builder.request.machines import load_machines
from image_builder.store.image_store import open_images
from image_builder.store.record import ImageRecord
from tests.support.site import PASSWORD, USER, Site, make_site, running_service

ROUNDS = 10
GOAL_MS = 50
FILENAME = "model_v_1.sif"
CALLS = {
    "whether an image runs on a machine (`check`), 95 %": "check?machine={machine}",
    "what starts it there (`script`), 95 %": "script?machine={machine}&program=model",
}
LABELS = {
    label_names.PLATFORM: "linux/amd64",
    label_names.TARGET: "x86_64_v3",
    label_names.FACTS: "1",
    label_names.GLIBC: "2.36",
    label_names.GLIBC_NEEDED: "2.34",
    label_names.KERNEL_MIN: "3.2.0",
    label_names.MPI_NAME: "mpich",
    label_names.MPI_FAMILY: "mpich",
    label_names.MPI_VERSION: "4.2.3",
    label_names.MPI_PMI: "pmi2",
    label_names.LIBFABRIC: "verbs",
    label_names.GPU_RUNTIME: "cuda",
    label_names.GPU_VERSION: "12.4.1",
    label_names.GPU_ARCH: "80",
}


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the time that an answer takes, over REST."""
    with tempfile.TemporaryDirectory() as root:
        site = make_site(Path(root) / "site")
        store_image(site)
        with running_service(site) as service:
            found = {what: list(_times(service.url, call)) for what, call in CALLS.items()}
    return [
        Row(
            what,
            statistics.quantiles(times, n=20)[-1] * 1000,
            GOAL_MS,
            " ms",
            note=f"median {statistics.median(times) * 1000:.1f} ms of {len(times)} answers",
        )
        for what, times in found.items()
    ]


def store_image(site: Site) -> None:
    """Store an image whose labels say all that a check looks at."""
    library = site.settings.library
    store = open_images(library.build, library.registry)
    with store.temporary_path() as path:
        path.write_bytes(b"no SIF is read")
        record = ImageRecord(
            identity="ab" * 32,
            image_id="registry.example.org/model:1",
            platform="linux/amd64",
            filename=FILENAME,
            details={"labels": LABELS},
        )
        store.publish(path, record)


def _times(url: str, call: str) -> Iterator[float]:
    """Yield the seconds of each answer after the first round."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    headers = {"Authorization": "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    machines = [name for name, entry in load_machines().items() if entry.batch == "slurm"]
    for turn in range(ROUNDS + 1):
        for machine in machines:
            path = f"/image_creation/image/{FILENAME}/{call.format(machine=machine)}"
            begun = time.monotonic()
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
            took = time.monotonic() - begun
            assert answer.status == 200, text
            if turn:
                yield took


if __name__ == "__main__":
    main()
