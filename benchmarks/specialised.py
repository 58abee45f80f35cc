"""Measure what specialising gains: `python3 -m benchmarks.specialised`.

Each code is built by the service for a generic target and for this host's own, with the same sources and compiler, and
natively on this host with the flags of its target. `CIC_BENCHMARK_CODES` is a folder with the sources that `codes.yaml`
names, each a git repository or an archive (`lapack.tar.xz`); `CIC_SPACK_ROOT` and `CIC_TEST_SPACK_BASE` name the Spack,
as for the tests. Without them, or g++ and gfortran on this host, nothing is measured. The programs take turns, and the
median of the turns' ratios counts, less what starting the container takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import archspec.cpu
import yaml

from benchmarks.rows import Row, attempted, not_measured, show
from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import build_image
from image_builder.request.parsing import parse_request
from tests.support.daemon_images import remove_images
from tests.support.recording import Heard
from tests.support.site import Site
from tests.support.spack_site import SPACK_ROOT, make_spack_site

CODES: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("codes.yaml").read_text("utf-8"))
TURNS = 21
BRINGS = "generic over specialised image, best of the codes"
NATIVE = "specialised image's program in its SIF over the native one, worst of the codes"
UNKNOWN = (Row(BRINGS, None, 1.0, at_least=True), Row(NATIVE, None, 1.02))
COMPILERS = {"cxx": "g++", "fortran": "gfortran"}
PACKAGE = '''\
import glob

from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Code{title}(Package):
    """A code of the benchmark."""

    url = "https://sources.invalid/{name}-1.0.tar.gz"
    version("1.0", sha256="{digest}")

    import spack

    if spack.spack_version_info >= (0, 23):  # before, every package may use the compilers
        depends_on("c", type="build")
        depends_on("{compiler}", type="build")

    def install(self, spec, prefix):
        mkdirp(prefix.bin)
        files = [path for pattern in {files!r} for path in sorted(glob.glob(pattern))]
        Executable({wrapper})(*{flags!r}, *files, "-o", join_path(prefix.bin, "{name}"))
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """The ratios of the times of one code's programs, each the median of all turns."""

    generic_over_specialised: float
    specialised_over_native: float


def main() -> None:
    show(rows())


def rows() -> list[Row]:
    """Return the figures of one run.

    A figure that fails is not measured, and its row gives the reason.
    """
    sources = os.environ.get("CIC_BENCHMARK_CODES")
    if SPACK_ROOT is None or sources is None:
        return not_measured([*UNKNOWN], "CIC_SPACK_ROOT or CIC_BENCHMARK_CODES is not set")
    if missing := [name for name in COMPILERS.values() if shutil.which(name) is None]:
        return not_measured([*UNKNOWN], f"{' and '.join(missing)} of this host is missing")
    return attempted(UNKNOWN, lambda: compared(Path(sources)))


def compared(sources: Path) -> list[Row]:
    """Return both figures, of all codes."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        root = Path(folder)
        site = with_codes(make_spack_site(root / "site"), sources, root)
        try:
            target = archspec.cpu.host().name
            images = {name: built(site, name) for name in ("x86_64", target)}
            codes = {name: timed(name, images, target, root) for name in CODES}
        finally:
            remove_images(site)
    brings = {name: one.generic_over_specialised for name, one in codes.items()}
    native = {name: one.specialised_over_native for name, one in codes.items()}
    return [
        Row(
            BRINGS,
            max(brings.values()),
            1.0,
            at_least=True,
            note=f"{target}: " + ", ".join(f"{name} {one:.2f}" for name, one in brings.items()),
        ),
        Row(
            NATIVE,
            max(native.values()),
            1.02,
            note=", ".join(f"{name} {one:.3f}" for name, one in native.items()),
        ),
    ]


def with_codes(site: Site, sources: Path, root: Path) -> Site:
    """Return the site with the codes in its catalogue and its source mirror, unpacked below `root`."""
    catalogue, mirror = root / "catalogue", root / "mirror"
    shutil.copytree(site.environ["CIC_REPOSITORIES_SOFTWARE_REPOSITORY"], catalogue)
    shutil.copytree(site.environ["CIC_BUILD_SPACK_MIRROR"], mirror)
    for name, code in CODES.items():
        unpack(sources, code, root / name)
        digest = pack(root / name, mirror)
        folder = catalogue / "packages" / f"code-{name}"
        folder.mkdir()
        text = PACKAGE.format(
            title=name.capitalize(),
            name=name,
            digest=digest,
            compiler=code["compiler"],
            files=code["files"],
            flags=code["flags"],
            wrapper={"cxx": "spack_cxx", "fortran": "spack_fc"}[code["compiler"]],
        )
        (folder / "package.py").write_text(text, "utf-8")
    specs = "".join(f"    - code-{name}\n" for name in CODES)
    site.add_step("codes", "all", {"eflows4hpc.yaml": f"spack:\n  specs:\n{specs}"})
    return site.with_environ(
        CIC_BUILD_SPACK_MIRROR=str(mirror), CIC_REPOSITORIES_SOFTWARE_REPOSITORY=str(catalogue)
    )


def unpack(sources: Path, code: Mapping[str, Any], folder: Path) -> None:
    """Write the files of a code, with the driver that this benchmark adds."""
    folder.mkdir()
    source = next(
        path for path in sorted(sources.iterdir()) if path.name.startswith(code["source"])
    )
    if source.is_dir():
        packed = subprocess.run(
            ["git", "-C", str(source), "archive", "HEAD"], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
    else:
        command = ["tar", "-x", "-f", str(source), "-C", str(folder), "--strip-components=1"]
        subprocess.run(command, check=True)
    for name, text in code.items():
        if name.endswith(".f90"):
            (folder / name).write_text(text, "utf-8")


def pack(folder: Path, mirror: Path) -> str:
    """Put a code into the source mirror as Spack looks for it; returns its sha256."""
    archive = mirror / f"{folder.name}.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, f"{folder.name}-1.0")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    place = mirror / "_source-cache" / "archive" / digest[:2] / f"{digest}.tar.gz"
    place.parent.mkdir(parents=True, exist_ok=True)
    archive.rename(place)
    return digest


def built(site: Site, target: str) -> Path:
    """Return the SIF with all codes for a target."""
    machine = {
        "platform": "linux/amd64",
        "architecture": target,
        "container_engine": "singularity",
    }
    request = parse_request(
        {"machine": machine, "workflow": "codes", "step_id": "all", "push": False}
    )
    result = build_image(
        request,
        settings=site.settings.library,
        workspace=site.root / "workspace",
        observer=Heard(),
        cancel=CancelToken(),
    )
    assert result.sif_path is not None
    return result.sif_path


def native(name: str, target: str, folder: Path) -> Path:
    """Return the program as a user of this host would compile it for it."""
    code = CODES[name]
    compiler = COMPILERS[code["compiler"]]
    version = subprocess.run(
        [compiler, "-dumpfullversion"], check=True, capture_output=True, text=True
    ).stdout.strip()
    flags = archspec.cpu.TARGETS[target].optimization_flags("gcc", version).split()
    files = [str(path) for pattern in code["files"] for path in sorted(folder.glob(pattern))]
    program = folder / name
    command = [compiler, *flags, *code["flags"], *files, "-o", str(program)]
    subprocess.run(command, check=True, cwd=folder)
    return program


def timed(name: str, images: Mapping[str, Path], target: str, root: Path) -> Compared:
    """Compare the three programs of a code, which take turns.

    A machine whose processors others use, too, is faster and slower for minutes at a time: the
    programs of one turn meet much the same.
    """
    program = native(name, target, root / name)
    run = CODES[name]["run"]
    commands: dict[str, Sequence[str]] = {
        "generic": inside(images["x86_64"], run),
        "specialised": inside(images[target], run),
        "native": [str(program), *run[1:]],
    }
    nothing = inside(images[target], ["true"])
    with tempfile.TemporaryDirectory() as scratch:
        starts_s = statistics.median(seconds(nothing, Path(scratch)) for _ in range(TURNS))
        turns = []
        for turn in range(TURNS):
            order = list(commands)[:: 1 if turn % 2 else -1]
            turns.append({which: seconds(commands[which], Path(scratch)) for which in order})
    return Compared(
        generic_over_specialised=statistics.median(
            (turn["generic"] - starts_s) / (turn["specialised"] - starts_s) for turn in turns
        ),
        specialised_over_native=statistics.median(
            (turn["specialised"] - starts_s) / turn["native"] for turn in turns
        ),
    )


def inside(image: Path, command: Sequence[str]) -> list[str]:
    return ["apptainer", "exec", "--userns", "--pwd", "/tmp", str(image), *command]


def seconds(command: Sequence[str], scratch: Path) -> float:
    """Return what a command takes on the processors.

    Other programs on this machine disturb it less than they do the time by the clock.
    """
    with subprocess.Popen(command, cwd=scratch, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
