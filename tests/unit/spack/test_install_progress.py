"""How far an install is, read from Spack's lines, and what a base image's answers mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_builder.spack.install_progress import InstallProgress, packages_to_install
from tests.conftest import DATA

HASH = "abcdefghijklmnopqrstuvwxyz234567"


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        (f"==> Installing openmpi-4.1.6-{HASH} [3/9]", (0, 9, "openmpi@4.1.6")),
        (
            f"[+] /opt/spack/linux-debian12-zen2/gcc-12.2.0/openmpi-4.1.6-{HASH}",
            (1, 9, "openmpi@4.1.6"),
        ),
        (f"#12 34.5 [+] /opt/software/py-mpi4py-3.1.4-{HASH}", (1, 9, "py-mpi4py@3.1.4")),
        (f"[+] /opt/x/exageostat-master-{HASH} (fetched)", (1, 9, "exageostat@master")),
        (f"[e] /usr (external openmpi-4.1.4-{HASH})", None),
        ("==> openmpi: Executing phase: 'install'", None),
        ("", None),
    ],
)
def test_what_a_line_tells(line: str, heard: tuple[int, int, str] | None) -> None:
    assert InstallProgress(["a-package"] * 9).heard(line) == heard


@pytest.mark.parametrize(
    ("names", "whole", "told"),
    [
        (["py-3to2"], "py-3to2-1.0", "py-3to2@1.0"),
        (["py", "gpi-2"], "gpi-2-1.5.1", "gpi-2@1.5.1"),
        (["exampm"], "exampm-2021-06-01", "exampm@2021-06-01"),
        (["python"], "py-numpy-1.26.4", "py-numpy@1.26.4"),
    ],
)
def test_the_lockfiles_names_tell_a_name_from_a_version(
    names: list[str], whole: str, told: str
) -> None:
    for line in (f"==> Installing {whole}-{HASH} [3/9]", f"[+] /opt/x/{whole}-{HASH}"):
        heard = InstallProgress(names).heard(line)
        assert heard is not None and heard[2] == told


SIDE_BY_SIDE = """\
#12 1.4 [e] v2ombf5 glibc@2.36 /usr (0s)
#12 1.5 [ ] wz6nbda util-macros@1.19 fetching from build cache (0s)
#12 1.6 [ ] wz6nbda util-macros@1.19 no binary available (0s)
#12 2.0 [ ] 5no4vnu fftw@3.3.10 staging
#12 2.1 [ ] wz6nbda util-macros@1.19 configure (1s)
#12 2.2 [ ] 5no4vnu fftw@3.3.10 build (1s)
#12 61.4 [ ] kdenkox py-mpi4py@3.1.4 fetching: 30%
#12 112.4 [+] 5no4vnu fftw@3.3.10 /opt/spack/fftw-3.3.10-5no4vnu (1m50s)
#12 113.0 [x] wz6nbda util-macros@1.19 failed: /tmp/root/spack-stage/spack-stage-util.log (1m51s)"""
"""What Spack 1.2 writes of several packages at once."""


def test_what_is_built_side_by_side_is_told_with_its_phase_and_time() -> None:
    progress = InstallProgress(["a-package"] * 3)
    told = [progress.heard(line) for line in SIDE_BY_SIDE.splitlines()]
    assert told[0] is None, "an external is not installed"
    assert [what[:2] for what in told[1:] if what] == [(0, 3)] * 6 + [(1, 3)] * 2
    assert [what[2] for what in told[1:] if what] == [
        "util-macros@1.19 fetching from build cache",
        "util-macros@1.19",
        "fftw@3.3.10 staging",
        "fftw@3.3.10 staging, util-macros@1.19 configure",
        "fftw@3.3.10 build, util-macros@1.19 configure",
        "fftw@3.3.10 build 59 s, util-macros@1.19 configure 59 s, py-mpi4py@3.1.4 fetching",
        "util-macros@1.19 configure 110 s, py-mpi4py@3.1.4 fetching 51 s",
        "py-mpi4py@3.1.4 fetching 52 s",
    ]


def test_phases_of_older_releases_are_told_side_by_side_too() -> None:
    progress = InstallProgress(["a-package"] * 9)
    for name in ("lz4", "py-six"):
        progress.heard(f"#7 1.0 ==> Installing {name}-1.0-{HASH} [1/9]")
    assert progress.heard("#7 5.0 ==> py-six: Executing phase: 'install'") == (
        0,
        9,
        "lz4@1.0 4 s, py-six@1.0 install 4 s",
    )


def test_what_is_installed_is_not_begun_by_a_late_line() -> None:
    """Spack 1.1 writes it in this order of a package that it takes from a cache."""
    progress = InstallProgress(["lz4", "py-six"])
    progress.heard(f"==> Extracting lz4-1.9.4-{HASH} from binary cache")
    assert progress.heard(f"[+] /opt/spack/lz4-1.9.4-{HASH}") == (1, 2, "lz4@1.9.4")
    assert progress.heard(f"==> Installing lz4-1.9.4-{HASH} [1/1]") is None


def test_many_packages_at_once_are_counted_and_not_all_named() -> None:
    progress = InstallProgress(["a-package"] * 99)
    for number in range(20):
        told = progress.heard(f"[ ] abcdefg package-with-a-name-{number}@1.0 build (3s)")
    assert told is not None
    assert told[2].endswith(", 14 more")


def test_a_package_counts_once_and_never_beyond_the_total() -> None:
    progress = InstallProgress(["a-package"] * 2)
    lines = [f"[+] /opt/{name}-1.0-{HASH}" for name in ("a", "a", "b", "c")]
    assert [heard[0] for line in lines if (heard := progress.heard(line))] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "file", sorted((DATA / "locks").glob("*openmpi-haswell.json")), ids=lambda file: file.stem
)
def test_externals_are_not_installed(file: Path) -> None:
    lock = json.loads(file.read_text())
    count = len(packages_to_install(lock))
    externals = [node for node in lock["concrete_specs"].values() if node.get("external")]
    assert count == len(lock["concrete_specs"]) - len(externals)
    assert externals and count


def test_an_image_without_spack_installs_nothing() -> None:
    assert packages_to_install({}) == ()
