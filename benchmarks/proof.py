"""Measure what an image's proof costs: the time of a build for it, and of checking it offline.

The image is the base image that tests use; what is added is measured part by part, since two whole
builds differ by more than that. A build reads the image's files once in any case, for its audit and the
image's facts: what the bill of materials adds is how much longer that takes with it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rows import Row, attempted
from image_builder.audit import exported_files
from image_builder.audit.exported_files import Sampling, Visitor
from image_builder.build.evidence import PackagesSeen
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import run
from image_builder.proof import contents, sbom
from image_builder.proof.keys import read_signer
from image_builder.sif import format
from tests.support.signing import GROUP, SMALL, SignedEvidence, make_key, signed_sif
from tests.support.site import BASE_IMAGE, PROJECT

ADDED = Row(
    "what a bill of materials, a statement and signatures add to a small build", None, 1, " s"
)
VERIFIED = Row("`cic_cli verify` of a 1 GB SIF against `sha256sum` of it", None, 1.2)
RUNS = 5
LARGE_BYTES = 10**9
FACTS = sbom.ImageFacts(
    image_id="benchmark:1",
    identity=f"sha256:{'0' * 64}",
    platform="linux/amd64",
    target="x86_64",
    recipe="1",
    is_slim=False,
    workflow="demo",
    step_id="hello",
    tree="0" * 40,
    commit=None,
    source=None,
    base=BASE_IMAGE,
    base_digest=None,
    created_s=0,
    tool="benchmark",
)


def rows() -> list[Row]:
    """Return what was measured of all that has a goal."""
    return [*attempted([ADDED], _added), *attempted([VERIFIED], _verified)]


def _added() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        plain_s, with_bill_s = _median_s(_read), _median_s(_read_with_bill)
        bill_s = max(0.0, with_bill_s - plain_s)
        evidence = SignedEvidence(read_signer(make_key(Path(folder) / "key.pem", "ed25519")))
        squashfs = Path(folder) / "image.squashfs"
        squashfs.write_bytes(os.urandom(100 * 1024**2))
        made_s = [
            _median_s(lambda with_it=with_it: _write(squashfs, with_it))  # type: ignore[misc]
            for with_it in (None, evidence)
        ]
    added_s = bill_s + max(0.0, made_s[1] - made_s[0])
    note = f"reading {BASE_IMAGE} took {with_bill_s:.2f} s with a bill of materials, {plain_s:.2f} s without"
    return [Row(ADDED.what, added_s, ADDED.goal, ADDED.unit, note=note)]


def _read_with_bill() -> None:
    seen = PackagesSeen(contents.ContentsReader(()))
    _read(seen)
    sbom.sbom(FACTS, None, seen.contents())


def _read(*visitors: Visitor) -> None:
    """Read an image's files as a build does before anything else is known of them."""
    with tempfile.TemporaryDirectory() as folder:
        sampling = Sampling(
            image=BASE_IMAGE,
            recipe_version="1",
            folder=Path(folder) / "samples",
            cpus=1,
            cgroup=None,
            runner=run,
        )
        exported_files.look(BASE_IMAGE, (), "linux/amd64", sampling, CancelToken(), visitors)


def _write(squashfs: Path, evidence: format.Evidence | None) -> None:
    path = squashfs.with_suffix(".sif")
    path.unlink(missing_ok=True)
    format.write(
        path,
        architecture="amd64",
        small=SMALL,
        squashfs=squashfs,
        group=GROUP,
        time_s=0,
        evidence=evidence,
    )


def _verified() -> list[Row]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        folder = Path(name)
        signer = read_signer(make_key(folder / "key.pem", "ed25519"))
        (folder / "keys.pem").write_text(signer.public_pem)
        sif = signed_sif(folder / "image.sif", signer, squashfs_bytes=LARGE_BYTES)
        commands = (
            ["sha256sum", str(sif)],
            [str(PROJECT / "cic_cli"), "verify", str(sif), str(folder / "keys.pem")],
        )
        plain_s, verified_s = (
            _median_s(lambda command=command: _run(command))  # type: ignore[misc]
            for command in commands
        )
    note = f"{verified_s:.2f} s against {plain_s:.2f} s"
    return [Row(VERIFIED.what, verified_s / plain_s, VERIFIED.goal, note=note)]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _median_s(work: Callable[[], object]) -> float:
    """Return the median duration of several runs, behind one that fills caches."""
    work()
    durations = []
    for _ in range(RUNS):
        begin = time.monotonic()
        work()
        durations.append(time.monotonic() - begin)
    return statistics.median(durations)
