"""Measure how much smaller a slim image is: `CIC_SPACK_ROOT=... python3 -m benchmarks.slim`.

The environment of fftw, lz4 and bzip2, built by real Spack from sources that Debian has too, as a
full and as a slim image of one base; their programs and libraries have run in the slim one. Without
a real Spack nothing is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, attempted, not_measured, show
from image_builder.docker import daemon
from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import build_image
from image_builder.request.parsing import parse_request
from image_builder.store.folder import ImageStore
from tests.support.daemon_images import remove_images
from tests.support.recording import Heard
from tests.support.site import PROJECT, Site, make_site
from tests.support.spack_site import RUNTIME_BASE, SPACK_BASE, SPACK_ROOT, make_runtime_base

UNKNOWN = Row("slim against full image of fftw, lz4 and bzip2", None, 0.25)
STEP = {
    "eflows4hpc.yaml": "spack:\n  specs: [fftw@3.3.10~mpi, lz4@1.9.4, bzip2@1.0.8]\nsmoke: [sh, -e, check.sh]\n",
    "check.sh": "lz4 --version\nbzip2 --help\nfftw-wisdom --version\n",
}


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the ratio of their bytes."""
    try:
        with site_with_spack() as site:
            return attempted([UNKNOWN], lambda: [against_full(site)])
    except NoSpack as reason:
        return not_measured([UNKNOWN], str(reason))


class NoSpack(Exception):
    """There is no real Spack here, or no site could be made of it; the message gives the reason."""


@contextlib.contextmanager
def site_with_spack() -> Iterator[Site]:
    """Make a site that builds the environment; its images are removed at the end.

    Raises `NoSpack`.
    """
    if SPACK_ROOT is None:
        raise NoSpack("CIC_SPACK_ROOT names no Spack")
    with tempfile.TemporaryDirectory() as folder:
        try:
            site = spack_site(Path(folder), Path(SPACK_ROOT))
        except subprocess.CalledProcessError as error:
            raise NoSpack(str(error)) from error
        try:
            yield site
        finally:
            remove_images(site)


def against_full(site: Site) -> Row:
    full, slim = (daemon.image_bytes(built(site, slim=slim)) for slim in (False, True))
    assert full and slim, "Docker does not tell the size of an image"
    return dataclasses.replace(
        UNKNOWN, value=slim / full, note=f"{slim / 1e6:.0f} of {full / 1e6:.0f} MB"
    )


def spack_site(root: Path, spack_root: Path) -> Site:
    """Return a site on a base image with that Spack, and a mirror of all sources that are needed."""
    subprocess.run([str(PROJECT / "scripts" / "spack_base"), SPACK_BASE], check=True)
    make_runtime_base()
    subprocess.run(
        [str(PROJECT / "tests/support/real_spack/source_mirror"), str(root / "mirror")], check=True
    )
    catalogue = root / "catalogue"
    (catalogue / "packages").mkdir(parents=True)
    shutil.copy(PROJECT / "examples/software-catalog/repo.yaml", catalogue)
    add_fftw(catalogue / "packages", spack_root)
    site = make_site(root).with_environ(
        CIC_BUILD_BASE_IMAGE=SPACK_BASE,
        CIC_BUILD_RUNTIME_BASE_IMAGE=RUNTIME_BASE,
        CIC_BUILD_MAX_CONCURRENT_BUILDS="1",
        CIC_BUILD_SPACK_MIRROR=str(root / "mirror"),
        CIC_REPOSITORIES_SOFTWARE_REPOSITORY=str(catalogue),
    )
    site.add_step("bench", "three", STEP)
    return site


def add_fftw(packages: Path, spack_root: Path) -> None:
    """Add Spack's own package without the patch that is fetched: Debian has the tarball alone."""
    own = next(
        folder / "fftw"
        for folder in (
            spack_root / "var/spack/repos/builtin/packages",
            Path(os.environ.get("CIC_SPACK_PACKAGES", ""), "repos/spack_repo/builtin/packages"),
        )
        if folder.is_dir()
    )
    shutil.copytree(own, packages / "fftw")
    recipe = packages / "fftw" / "package.py"
    recipe.write_text(
        re.sub(r'    patch\(\s*"https://[^)]*\)\n', "", recipe.read_text("utf-8")), "utf-8"
    )


def built(site: Site, *, slim: bool) -> str:
    """Build the environment; returns the image's id."""
    machine = {"platform": "linux/amd64", "architecture": "x86_64_v3", "container_engine": "docker"}
    request = parse_request(
        {"machine": machine, "workflow": "bench", "step_id": "three", "push": False, "slim": slim}
    )
    result = build_image(
        request,
        settings=site.settings.library,
        workspace=site.root / "workspace",
        observer=Heard(),
        cancel=CancelToken(),
    )
    record = ImageStore(site.tmp_folder / "store").by_identity(result.identity)
    assert record is not None and record.details["slim"] is slim, (
        f"no such image was made: {result.warnings}"
    )
    return result.image_id


if __name__ == "__main__":
    main()
