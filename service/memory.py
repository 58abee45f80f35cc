"""Limit how much memory the C library takes for the many threads of the service's processes."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8
ARENAS = 2
"""Eight arenas per core, glibc's own choice, each keep what its threads once needed: with 200 log
followers and 60 more builds a process grew by 20 % that way, and by 5 to 10 % with two arenas
(tests/system/test_load.py).
"""


def share_arenas() -> None:
    """Let all threads of this process share `ARENAS` arenas.

    It does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)
