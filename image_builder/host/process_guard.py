"""Ends every process that a command left behind, in whichever group or session it is.

A command's processes share a group and carry a mark in their environment, so that a process that
started a session of its own is found as well. `process.py` runs this file as a program, once for
each process that runs commands. It reads `+<group> <mark>` and `-<group>` lines from standard input;
when the input ends, because its writer ended in whatever way, all that is still listed is killed.
It imports nothing of ours, so that it starts in a few milliseconds.
"""

import os
import signal
import sys

MARK = "IMAGE_BUILDER_COMMAND"
"""The environment variable that holds a command's mark: its owner, a point and a random token."""


def owner_of(pid: int) -> str:
    """Return a name that only this process ever has.

    It consists of the PID name space, the PID and the start time. Raises `OSError` when there is no
    such process.
    """
    return f"{os.readlink('/proc/self/ns/pid')}-{pid}-{start_time(pid)}"


def start_time(pid: int) -> str:
    """Return when a process began, in ticks since boot: a later one with its PID differs.

    Raises `OSError` when there is no such process.
    """
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]


def end_orphans() -> None:
    """Kill every marked process whose owner is dead.

    Its guard was killed, too. Processes of another PID name space are left alone.
    """
    space = os.readlink("/proc/self/ns/pid")
    for mark in {mark for _, mark in _marks()}:
        owner = mark.rpartition(".")[0]
        if owner.startswith(f"{space}-") and not _is_alive(owner):
            end_marked(mark)


def _is_alive(owner: str) -> bool:
    try:
        return owner_of(int(owner.split("-")[1])) == owner
    except OSError:
        return False


def end_marked(mark: str) -> None:
    """Kill every process that carries the mark, also those that start meanwhile."""
    while marked := [pid for pid, other in _marks() if other == mark]:
        for pid in marked:
            try:  # noqa: SIM105 - contextlib would cost a good part of the start
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def _marks() -> list[tuple[int, str]]:
    """Return the PIDs of living processes that carry a mark, each with its mark."""
    marked, begin = [], f"{MARK}=".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    for entry in file.read().split(b"\0"):
                        if entry.startswith(begin):
                            marked.append(
                                (int(name), entry[len(begin) :].decode("ascii", "replace"))
                            )
            except OSError:  # it has ended, or belongs to another user
                pass
    return marked


def main() -> None:
    marks: dict[int, str] = {}
    for line in sys.stdin:
        group, _, mark = line[1:].strip().partition(" ")
        if line[0] == "+":
            marks[int(group)] = mark
        else:
            marks.pop(int(group), None)
    for number, mark in marks.items():
        try:  # noqa: SIM105
            os.killpg(number, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        end_marked(mark)


if __name__ == "__main__":
    main()
