"""How much memory the processes of a running service take, and took at most."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.site import Service

MOST_GROWTH_BYTES = 64 * 1024**2
STILL_BYTES = 1024**2


def memory_bytes(service: Service) -> dict[int, int]:
    """Return the resident bytes of each process of the service."""
    mark = f"CIC_DATABASE={service.site.environ['CIC_DATABASE']}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_python = b"python" in (folder / "cmdline").read_bytes()
            if is_python and mark in (folder / "environ").read_bytes().split(b"\0"):
                pages = int((folder / "statm").read_text().split()[1])
                found[int(folder.name)] = pages * os.sysconf("SC_PAGE_SIZE")
    return found


@contextlib.contextmanager
def steady_memory(service: Service) -> Iterator[None]:
    """Fail if the peak of a process in the block is 64 MB above what it had before.

    What the service loads at its first build is not there before that: let it build something.
    """
    before = _settled(service)
    for pid in before:
        Path(f"/proc/{pid}/clear_refs").write_text("5\n")  # the peak begins anew
    yield
    grown = {}
    for pid, had_bytes in before.items():
        with contextlib.suppress(FileNotFoundError):  # it has ended
            grown[pid] = _peak_bytes(pid) - had_bytes
    assert grown and max(grown.values()) < MOST_GROWTH_BYTES, grown


def _settled(service: Service) -> dict[int, int]:
    """Return the resident bytes of each process once none starts or loads its code any more."""
    found = memory_bytes(service)
    for _ in range(240):
        time.sleep(0.5)
        before, found = found, memory_bytes(service)
        is_same = found and found.keys() == before.keys()
        if is_same and all(found[pid] - before[pid] < STILL_BYTES for pid in found):
            return found
    raise AssertionError(f"the service's processes do not settle: {found}")


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise FileNotFoundError(pid)  # a zombie has no memory any more
