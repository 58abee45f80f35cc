"""Runs one command as root with `sudo -n`, so that it still ends when we want it to.

We may not signal what root runs. So root's side is a small script that watches the command: it ends
the command as soon as a file of ours is removed, or our process ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Runner

_LOOK_AFTER = """
leave=$1 owner=$2; shift 2
"$@" & child=$!
while kill -0 "$child" 2>/dev/null; do
    if [ ! -e "$leave" ] || [ ! -e "/proc/$owner" ]; then kill "$child"; sleep 1; kill -9 "$child"; fi
    sleep 0.2
done 2>/dev/null
wait "$child"
"""


def arguments(
    argv: Sequence[str], *, leave: Path, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the command that runs `argv` as root until the file `leave` is removed.

    Its environment is `environment` alone.
    """
    handed_on = [f"{name}={value}" for name, value in sorted(environment.items())]
    return (
        "sudo",
        "-n",
        "env",
        *handed_on,
        "sh",
        "-c",
        _LOOK_AFTER,
        "cic",
        str(leave),
        str(os.getpid()),
        *argv,
    )


@contextlib.contextmanager
def leave_to_run(path: Path, *, cancel: CancelToken | None, timeout_s: float) -> Iterator[None]:
    """Create the file `path`; remove it at the block's end, on a cancel, or after `timeout_s`."""
    path.touch()
    done = threading.Event()

    def withdraw() -> None:
        deadline = time.monotonic() + timeout_s
        while (
            not done.wait(0.1)
            and time.monotonic() < deadline
            and not (cancel is not None and cancel.is_set)
        ):
            pass
        path.unlink(missing_ok=True)

    thread = threading.Thread(target=withdraw, name="sudo-leave", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def take_over(folders: Sequence[Path], runner: Runner) -> None:
    """Make the service's user the owner of everything that root wrote to the folders."""
    owner = f"{os.geteuid()}:{os.getegid()}"
    argv = (
        "sudo",
        "-n",
        "chown",
        "--recursive",
        "--no-dereference",
        owner,
        "--",
        *map(str, folders),
    )
    runner(Command(name="chown", argv=argv, timeout_s=600))
