"""Find processes of this machine, also those in containers."""

from __future__ import annotations

from pathlib import Path


def command_lines() -> list[list[bytes]]:
    """Return the arguments of every process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((folder / "cmdline").read_bytes().split(b"\0"))
        except OSError:
            continue
    return found


def sleepers(sleep_s: str) -> list[list[bytes]]:
    """Return the processes that sleep for so long, in containers, too."""
    return [
        arguments
        for arguments in command_lines()
        if arguments[0].rsplit(b"/", 1)[-1] == b"sleep" and sleep_s.encode() in arguments
    ]
