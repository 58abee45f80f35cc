"""Which step writes most is read from what the kernel counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.host.step_writers import StepWriters

ONE, TWO = ("sh", "/run/cic/post_install.sh", "/one"), ("sh", "/run/cic/install.sh")


class FakeProcesses:
    """A folder as `/proc`, with the processes that a test adds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        pid: int,
        command: tuple[str, ...],
        cgroup: str,
        written_bytes: int,
        *,
        inside: int = 1,
    ) -> None:
        process = self.folder / str(pid)
        process.mkdir(parents=True, exist_ok=True)
        (process / "cmdline").write_text("\0".join(command) + "\0")
        (process / "status").write_text(f"Name:\tsh\nNSpid:\t{pid}\t{inside}\n")
        (process / "cgroup").write_text(f"8:pids:{cgroup}\n0::{cgroup}\n")
        (process / "io").write_text(f"rchar: 1\nwrite_bytes: {written_bytes}\n")


@pytest.fixture
def fake(tmp_path: Path) -> FakeProcesses:
    processes = FakeProcesses(tmp_path / "proc")
    processes.add(1, ("init",), "/init", 10**12)
    return processes


@pytest.fixture
def writers(fake: FakeProcesses, tmp_path: Path) -> StepWriters:
    return StepWriters(processes=fake.folder, cgroups=tmp_path / "cgroup")


def test_the_one_whose_processes_have_written_most_since_the_last_look(
    fake: FakeProcesses, writers: StepWriters
) -> None:
    fake.add(10, ONE, "/cic/buildkit/a", 100)
    fake.add(20, TWO, "/cic/buildkit/b", 10**9)
    assert writers.busiest() is None, "nothing to compare with"
    assert writers.busiest() is None, "nothing has grown"
    fake.add(11, ("dd", "of=/fill"), "/cic/buildkit/a", 5000, inside=2)
    fake.add(20, TWO, "/cic/buildkit/b", 10**9 + 10)
    assert writers.busiest() == ONE
    fake.add(20, TWO, "/cic/buildkit/b", 2 * 10**9)
    assert writers.busiest() == TWO


def test_only_the_first_process_of_a_container_is_a_step(
    fake: FakeProcesses, writers: StepWriters
) -> None:
    fake.add(10, ONE, "/cic/buildkit/a", 0)
    fake.add(11, TWO, "/cic/buildkit/a", 0, inside=7)
    fake.add(12, TWO, "/user.slice", 0)
    writers.busiest()
    for pid, inside in ((11, 7), (12, 1)):
        fake.add(pid, TWO, "/cic/buildkit/a" if pid == 11 else "/user.slice", 500, inside=inside)
    assert writers.busiest() == ONE


def test_what_this_user_may_not_read_is_read_from_the_group(
    fake: FakeProcesses, writers: StepWriters, tmp_path: Path
) -> None:
    """Without root, the counters of others' processes are closed."""
    fake.add(10, ONE, "/cic/buildkit/a", 0)
    (fake.folder / "10/io").unlink()
    (fake.folder / "10/io").mkdir()  # root, as whom tests may run, reads every file
    group = tmp_path / "cgroup/cic/buildkit/a"
    group.mkdir(parents=True)
    (group / "io.stat").write_text("254:0 rbytes=1 wbytes=100 rios=1\n")
    assert writers.busiest() is None
    (group / "io.stat").write_text("254:0 rbytes=1 wbytes=100 rios=1\n8:0 wbytes=900\n")
    assert writers.busiest() == ONE
