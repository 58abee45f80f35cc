"""Finds which build step writes most, by what the kernel counts for the processes of each step.

BuildKit starts a step as the first process of a container, with the recipe's own command. What such
a process claims to be is a hint alone: a stranger's program may claim to be another step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

PROCESSES = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
BEGINNING = ("sh", "/run/cic/")
"""How the command of every step of the recipe begins."""
MAX_COMMAND_BYTES = 4096
_CONTAINERS = "/buildkit/"

StepCommand = tuple[str, ...]


class StepWriters:
    """Compares what steps have written between one look and the next."""

    def __init__(self, *, processes: Path = PROCESSES, cgroups: Path = CGROUPS) -> None:
        self._processes, self._cgroups = processes, cgroups
        self._before: dict[str, int] = {}

    def busiest(self) -> StepCommand | None:
        """Return the command of the step that has written most since the last call, or None.

        None stands for no growth, a first look, or counters that this user may not read.
        """
        steps = dict(self._steps())
        now = {cgroup: self._written_bytes(cgroup) for cgroup in steps}
        grown = {
            cgroup: written - self._before[cgroup]
            for cgroup, written in now.items()
            if cgroup in self._before
        }
        self._before = now
        most = max(grown, key=lambda cgroup: grown[cgroup], default=None)
        return steps[most] if most is not None and grown[most] > 0 else None

    def _steps(self) -> Iterator[tuple[str, StepCommand]]:
        """Yield the control groups of running steps, each with its step's command."""
        for process in self._all_processes():
            with contextlib.suppress(OSError):
                with (process / "cmdline").open("rb") as file:
                    text = file.read(MAX_COMMAND_BYTES).decode("utf-8", "replace")
                command = tuple(text.rstrip("\0").split("\0"))
                if (
                    len(command) > 1
                    and command[0] == BEGINNING[0]
                    and command[1].startswith(BEGINNING[1])
                    and _is_first_of_its_container(process)
                    and (cgroup := _cgroup_of(process)) is not None
                ):
                    yield cgroup, command

    def _written_bytes(self, cgroup: str) -> int:
        """Return what a step's processes have written, also those that ended; 0 if unknown."""
        try:
            return sum(
                _counter(process / "io", "write_bytes")
                for process in self._all_processes()
                if _cgroup_of(process) == cgroup
            )
        except OSError:  # not root: what was written back to the disk already
            return self._written_back_bytes(cgroup)

    def _written_back_bytes(self, cgroup: str) -> int:
        try:
            text = (self._cgroups / cgroup.lstrip("/") / "io.stat").read_text()
        except OSError:
            return 0
        fields = (field.partition("=") for line in text.splitlines() for field in line.split())
        return sum(int(value) for name, _, value in fields if name == "wbytes" and value.isdigit())

    def _all_processes(self) -> Iterator[Path]:
        return (path for path in self._processes.iterdir() if path.name.isdigit())


def _is_first_of_its_container(process: Path) -> bool:
    for line in (process / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1] == "1"
    return False


def _cgroup_of(process: Path) -> str | None:
    """Return the control group of a build step's process, or None for any other process."""
    with contextlib.suppress(OSError):
        for line in (process / "cgroup").read_text().splitlines():
            path = line.split(":", 2)[-1]
            if _CONTAINERS in path:
                return path
    return None


def _counter(file: Path, name: str) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value)
    return 0
