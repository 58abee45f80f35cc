"""Decides which builds share built packages through the local cache. Pure.

The cache is a BuildKit cache mount of the install step. A package's hash in Spack does not cover
everything that its binary depends on; the mount's name covers the rest. A user who can run code of
their own in the install step could write into the cache what others install, so a build whose specs
could do that gets no cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from image_builder.recipe.environment import Environment
from image_builder.spack.releases import FIRST_SHARING
from image_builder.spack.spec_syntax import FLAGS

_PLAIN = re.compile(r"[A-Za-z0-9_.:,+/@=-]*\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_EXTERNAL_KEYS = {"spec", "prefix"}


def incompatibility(
    environment: Environment, lock: Mapping[str, Any], spack_version: tuple[int, ...] | None
) -> str | None:
    """Return why a build of `lock` takes no part in the cache; None if it does."""
    if spack_version is None or spack_version < FIRST_SHARING:
        return f"the base image has no Spack from {'.'.join(map(str, FIRST_SHARING))} on"
    for name, fields in ((environment.spack or {}).get("packages") or {}).items():
        for external in fields.get("externals") or ():
            if set(external) - _EXTERNAL_KEYS:
                return f"an external of {name} says more than its spec and prefix"
    for node in lock.get("concrete_specs", {}).values():
        if not node.get("external") and (reason := _runs_own_code(node)) is not None:
            return f"{node['name']} {reason}"
    return None


def _runs_own_code(node: Mapping[str, Any]) -> str | None:
    """Return how a node lets its spec's author run code of their own; None if it does not."""
    version, parameters = str(node.get("version", "")), node.get("parameters") or {}
    if version.startswith("git.") or "=" in version or _COMMIT.match(version):
        return "is of a commit that the workflow chose"
    if "dev_path" in parameters:
        return "is built from a folder"
    if any(parameters.get(flags) for flags in FLAGS):
        return "has compiler flags of its own"
    for name, value in parameters.items():
        values = value if isinstance(value, list) else [value]
        if not all(_PLAIN.match(str(one)) for one in values):
            return f"has a value of {name} that is more than a word"
    return None
