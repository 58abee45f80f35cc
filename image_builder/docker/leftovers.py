"""Names the process that made a container or a name in the daemon, so that leftovers can go."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from image_builder.host.process_guard import start_time

ABANDONED_S = 7 * 24 * 3600
"""Age after which a container or a name is no longer in use, whichever process made it."""


def owner_tag() -> str:
    """Return a new tag that names this process, now and later, and is valid in an image's name."""
    return f"{_owner(os.getpid())}-{int(time.time())}-{secrets.token_hex(8)}"


def is_dead(tag: str) -> bool:
    """Return whether the process that made this tag is gone.

    For a process that is not visible from here, the tag's age decides.
    """
    owner, _, made_at = tag.rpartition("-")[0].rpartition("-")
    boot, space, pid, _ = (*owner.split("-"), "", "", "", "")[:4]
    if not (pid.isdigit() and made_at.isdigit()):
        return False
    if f"{boot}-{space}" == _here():
        return _owner(int(pid)) != owner
    return is_old(tag)


def is_old(tag: str) -> bool:
    """Return whether a tag is older than any work that a process does with what it names."""
    made_at = tag.rpartition("-")[0].rpartition("-")[2]
    return made_at.isdigit() and time.time() - int(made_at) > ABANDONED_S


def _owner(pid: int) -> str:
    """Return what names a visible process, distinct from a later one with the same number."""
    try:
        began = start_time(pid)
    except OSError:
        began = "ended"
    return f"{_here()}-{pid}-{began}"


def _here() -> str:
    """Return what names this boot of this machine, and the PID name space.

    Each container counts from 1, and may share the daemon.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")[:8]
    return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
