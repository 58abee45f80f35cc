"""Ends what a process left behind, wherever it went.

A command's processes share a group and carry a mark in their environment, so that one which made a session of its own
is found as well. Run as a program by `process.py`, once for each process that runs commands: it reads `+<group> <mark>`
and `-<group>` lines from standard input; when the input ends, because its writer ended in whatever way, all that is
still listed is killed. It imports nothing of ours, so that it starts in a few milliseconds.
"""

import os
import signal
import sys

MARK = "IMAGE_BUILDER_COMMAND"
"""The environment variable that holds a command's mark."""


def end_marked(mark: str) -> None:
    """Kill every process that carries the mark, also those that are being started meanwhile."""
    while marked := _marked(f"{MARK}={mark}".encode()):
        for pid in marked:
            try:  # noqa: SIM105 - contextlib would cost a good part of the start
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def _marked(entry: bytes) -> list[int]:
    """The living processes with this entry in their environment; one that is dead shows none."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if entry in file.read().split(b"\0") and int(name) != os.getpid():
                        found.append(int(name))
            except OSError:  # ended meanwhile, or somebody else's
                pass
    return found


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
