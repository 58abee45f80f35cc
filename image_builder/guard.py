"""Ends process groups whose owner died.

Started by `process.py`, once for each process that runs commands. Reads `+<group>` and `-<group>` lines from
standard input; when the input ends, because its writer ended in whatever way, the groups still listed are killed.
It imports nothing of ours, so that it starts in a few milliseconds.
"""

import os
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        try:  # noqa: SIM105 - contextlib would cost a good part of the start
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


if __name__ == "__main__":
    main()
