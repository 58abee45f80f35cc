"""Measure a request for a SIF against Spack and Apptainer by hand: `python3 -m benchmarks.to_sif`.

Environment variables are those of `benchmarks.installs`. By hand are the steps of the service before
this one: with the older Spack it looks for compilers and externals in each image, installs one package
after the other and keeps their stages; then `apptainer build`.
"""

from __future__ import annotations

import secrets
import subprocess
import time
from pathlib import Path

from benchmarks.installs import built, with_two_bases
from benchmarks.rows import Row, show
from tests.support.spack_site import MEASURED, REAL_SPACK

SIF = "request to SIF, cold, fftw, lz4, bzip2, with 1.2 against the service before, with 0.23"
UNKNOWN = (Row(SIF, None, 0.6),)
BY_HAND = """\
FROM {base}
COPY catalogue /catalogue
COPY spack.yaml /environment/spack.yaml
RUN --mount=type=bind,from=mirror,target=/mirror \\
    spack repo add --scope site /catalogue && spack mirror add sources file:///mirror && spack find && \\
    spack compiler find && spack external find && \\
    spack -e /environment install --fail-fast --no-checksum --keep-stage -j 2 && spack gc -y && \\
    spack env activate --sh /environment >/etc/profile.d/spack.sh
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


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the figure of one run, or the reason why there is none."""
    return with_two_bases(UNKNOWN, to_sif)


def to_sif(older: str, newer: str, mirror: Path) -> list[Row]:
    """Compare a request for a SIF with what a plain Dockerfile and Apptainer take."""
    ours = built(newer, mirror, "singularity", MEASURED).seconds
    plain = by_hand(older, mirror, mirror.parent)
    return [Row(SIF, ours / plain, 0.6, note=f"{ours:.0f} s of {plain:.0f} s")]


def by_hand(base: str, mirror: Path, folder: Path) -> float:
    """Return the seconds that a plain Dockerfile with Spack and `apptainer build` take."""
    image = f"cic-by-hand:{secrets.token_hex(4)}"
    context = folder / "by-hand"
    context.mkdir()
    subprocess.run(["cp", "-R", str(REAL_SPACK / "catalogue"), str(context)], check=True)
    (context / "spack.yaml").write_text(ENVIRONMENT.format(specs=", ".join(MEASURED)), "utf-8")
    (context / "Dockerfile").write_text(BY_HAND.format(base=base), "utf-8")
    build = ["docker", "buildx", "build", "--no-cache", "--load", "--quiet"]
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
