"""Recognises `<name>-<version>-<hash>`, as Spack's messages call what it installs. Pure.

Both names and versions may contain hyphens (`py-numpy-1.26.4`, `exampm-2021-06-01`), and no name ends before a hyphen
and a digit when another reading is possible. Lengths are bounded, since what is read comes from strangers.
"""

from __future__ import annotations

NAME = r"[a-z0-9_]{1,60}(?:-[a-z0-9_]{1,60}){0,12}?"
VERSION = r"(?:v?\d[\w.=+-]{0,60}?|(?:git|main|master|develop|head|trunk|stable)[\w.=+-]{0,60}?|[\w.=+]{1,60})"
HASH = r"[a-z0-9]{7,32}"


def named(group: str = "package", *, hash_pattern: str = HASH) -> str:
    """Return the pattern of a name, version and hash.

    The name is the group `group`, the version the group `version`.
    """
    return rf"(?P<{group}>{NAME})-(?P<version>{VERSION})-{hash_pattern}\b"
