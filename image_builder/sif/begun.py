"""Begins a SIF while its image's files are read for something else, so that they are read once.

Whoever reads them passes on what was read, and nobody knows yet whether the image passes its checks:
what was begun is used only when it has. It is an offer: whatever goes wrong here, the files are
read again when the image is converted, and that tells what is wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import time
from collections.abc import Iterator
from typing import IO

from image_builder.errors import CicError
from image_builder.sif import tar_filter
from image_builder.sif.flow import PIPE_BYTES, Flow, RunningFlow

PATIENCE_S = 30.0
"""How long what was begun may take nothing before it is given up."""
POLL_S = 0.5


class BegunSif:
    """Takes an image's files, which become a squashfs that waits for what Singularity adds."""

    def __init__(self, running: RunningFlow, target: IO[bytes]) -> None:
        self.running = running
        self._target = target
        self._is_whole = False

    @property
    def is_usable(self) -> bool:
        """Return whether all files were taken."""
        return self._is_whole and not self.running.has_failed

    def take(self, chunk: bytes) -> None:
        """Take the next bytes of the archive. Raises `Cancelled`."""
        view = memoryview(chunk)
        while view and not self._target.closed:
            try:
                view = view[os.write(self._target.fileno(), view) :]
            except BlockingIOError:
                self._wait()
            except OSError:  # a process has ended; its reason is told when the image is converted
                if (cancel := self.running.flow.cancel) is not None:
                    cancel.check()  # or this is why it has
                self.give_up()

    def see(self, member: tar_filter.Member, window: tar_filter.Window) -> None:
        """Give up on an image that has files in Singularity's own folder.

        What of them stays depends on what Singularity adds, which is not known yet.
        """
        if member.name.partition(b"/")[0] == tar_filter.METADATA:
            self.give_up()

    def end(self) -> None:
        """Take note that all was taken."""
        if not self._target.closed:
            self._is_whole = True
            self._target.close()

    def give_up(self) -> None:
        """Take nothing more."""
        self._target.close()

    def _wait(self) -> None:
        cancel, deadline = self.running.flow.cancel, time.monotonic() + PATIENCE_S
        while not select.select([], [self._target], [], POLL_S)[1]:
            if cancel is not None:
                cancel.check()
            if time.monotonic() > deadline:
                self.give_up()
                return


@contextlib.contextmanager
def begun(flow: Flow) -> Iterator[BegunSif | None]:
    """Begin what a flow makes, in its folder, which is made, and removed at the end.

    Yields None where a program is missing.
    """
    flow.folder.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, flow.folder, ignore_errors=True)
        reading, writing = os.pipe()
        ours = stack.enter_context(open(reading, "rb", buffering=0))
        target = stack.enter_context(open(writing, "wb", buffering=0))
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(writing, False)
        try:
            running = stack.enter_context(flow.started(reading, ours))
        except (CicError, OSError):
            yield None
            return
        yield BegunSif(running, target)


class CopyingWindow(tar_filter.Window):
    """Reads an archive, and passes on all that was read."""

    def __init__(self, source: int, copy: BegunSif) -> None:
        super().__init__(source, None)
        self._copy = copy

    def read(self, count: int) -> bytes:
        chunk = super().read(count)
        self._copy.take(chunk)
        return chunk
