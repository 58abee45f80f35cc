"""How far an install is, read from Spack's own lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_INSTALLED = re.compile(
    r"\[\+\] (?:\S*/)?(?P<name>[a-z0-9][a-z0-9-]*?)-(?P<version>[0-9][\w.]*|[\w.]+)-[a-z0-9]{32}\b"
)
_INSTALLING = re.compile(
    r"==> Installing (?P<name>[a-z0-9][a-z0-9-]*?)-(?P<version>[\w.]+)-[a-z0-9]{7,32}\b"
)


class InstallProgress:
    """Counts the packages of one install: feed it lines, and it says what changed."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._done: set[str] = set()

    def heard(self, line: str) -> tuple[int, int, str] | None:
        """`(done, total, what)` if the line moved the count or names the next package."""
        if match := _INSTALLED.search(line):
            self._done.add(match["name"])
        elif not (match := _INSTALLING.search(line)):
            return None
        return min(len(self._done), self.total), self.total, f"{match['name']}@{match['version']}"


def packages_to_install(lock: Mapping[str, Any]) -> int:
    """How many nodes of a `spack.lock` are installed, externals aside."""
    return sum(1 for node in lock.get("concrete_specs", {}).values() if not node.get("external"))
