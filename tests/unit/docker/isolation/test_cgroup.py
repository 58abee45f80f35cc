"""Limits of build steps: what is written for the kernel, on folders that are laid out as its two
versions are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.docker.isolation import cgroup
from image_builder.docker.isolation.cgroup import Limits
from image_builder.settings import BuildSettings, LibrarySettings

MIB = 1024**2


@pytest.fixture
def settings(library_settings: LibrarySettings) -> BuildSettings:
    return library_settings.build.model_copy(
        update={
            "steps_cgroup": "steps",
            "steps_memory_bytes": 512 * MIB + 1,
            "steps_pids": 100,
            "steps_cpus": 1.5,
        }
    )


@pytest.fixture(params=["version 1", "version 2"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the files that the kernel would have; it takes what is written, as the kernel
    does.
    """
    if request.param == "version 2":
        for name in ("cgroup.controllers", "cgroup.subtree_control"):
            (tmp_path / name).write_text("cpu memory pids")
    else:
        for name in ("cpu", "memory", "pids"):
            (tmp_path / name).mkdir()
    return tmp_path


def test_what_is_wanted_is_put_in_force(settings: BuildSettings, root: Path) -> None:
    assert cgroup.in_force(settings, root=root) is None
    assert cgroup.prepare(settings, root=root)
    assert cgroup.prepare(settings, root=root), "again"
    assert cgroup.in_force(settings, root=root) == Limits(
        memory_bytes=512 * MIB, pids=100, cpus=1.5
    )


def test_a_limit_that_is_taken_back_is_gone(settings: BuildSettings, root: Path) -> None:
    cgroup.prepare(settings, root=root)
    loose = settings.model_copy(update={"steps_pids": None, "steps_cpus": None})
    assert cgroup.prepare(loose, root=root)
    assert cgroup.in_force(loose, root=root) == Limits(memory_bytes=512 * MIB, pids=None, cpus=None)


def test_the_kernels_files_of_version_1(settings: BuildSettings, tmp_path: Path) -> None:
    for name in ("cpu", "memory", "pids"):
        (tmp_path / name).mkdir()
    cgroup.prepare(settings, root=tmp_path)
    written = {
        str(path.relative_to(tmp_path)): path.read_text()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert written == {
        "memory/steps/memory.limit_in_bytes": str(512 * MIB),
        "pids/steps/pids.max": "100",
        "cpu/steps/cpu.cfs_period_us": "100000",
        "cpu/steps/cpu.cfs_quota_us": "150000",
    }


def test_the_kernels_files_of_version_2(settings: BuildSettings, tmp_path: Path) -> None:
    for name in ("cgroup.controllers", "cgroup.subtree_control"):
        (tmp_path / name).write_text("")
    cgroup.prepare(settings.model_copy(update={"steps_cpus": None}), root=tmp_path)
    assert {path.name: path.read_text() for path in (tmp_path / "steps").iterdir()} == {
        "memory.max": str(512 * MIB),
        "pids.max": "100",
        "cpu.max": "max 100000",
    }
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_no_limit_of_memory_set_leaves_some_to_the_machine(
    library_settings: LibrarySettings,
) -> None:
    machine = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    assert 0.8 * machine < (cgroup.wanted(library_settings.build).memory_bytes or 0) < 0.9 * machine


def test_where_nothing_may_be_written_nothing_is_in_force(
    settings: BuildSettings, tmp_path: Path
) -> None:
    assert not cgroup.prepare(settings, root=tmp_path / "missing")
    assert cgroup.in_force(settings, root=tmp_path / "missing") is None


def test_who_wants_no_group_is_warned(settings: BuildSettings) -> None:
    without = settings.model_copy(update={"steps_cgroup": None})
    assert not cgroup.prepare(without)
    assert cgroup.cgroup_of(without) is None
    found = cgroup.problem(without)
    assert found is not None and "steps_cgroup" in found.hint
