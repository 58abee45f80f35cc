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
    assert InstallProgress(9).heard(line) == heard


def test_a_package_counts_once_and_never_beyond_the_total() -> None:
    progress = InstallProgress(2)
    lines = [f"[+] /opt/{name}-1.0-{HASH}" for name in ("a", "a", "b", "c")]
    assert [heard[0] for line in lines if (heard := progress.heard(line))] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "file", sorted((DATA / "locks").glob("*openmpi-haswell.json")), ids=lambda file: file.stem
)
def test_externals_are_not_installed(file: Path) -> None:
    lock = json.loads(file.read_text())
    count = packages_to_install(lock)
    externals = [node for node in lock["concrete_specs"].values() if node.get("external")]
    assert count == len(lock["concrete_specs"]) - len(externals)
    assert externals and count


def test_an_image_without_spack_installs_nothing() -> None:
    assert packages_to_install({}) == 0
