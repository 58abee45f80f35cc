"""Checks whether compiler flags that choose a CPU stay within the target. Pure."""

from __future__ import annotations

import functools
import re

import archspec.cpu

_CHOICE = re.compile(r"-m(?P<what>arch|cpu|tune)=(?P<name>.+)")
_FEATURE = re.compile(r"-m(?P<name>[a-z0-9][a-z0-9._]*)\Z")
_OPTIONS = ("-march=", "-mcpu=", "-mtune=")


def leaves_target(flag: str, target: str) -> bool:
    """Return whether a flag makes code for another CPU than `target`, as `native` does."""
    if match := _CHOICE.match(flag):
        base, *features = match["name"].split("+")
        allowed = _names(target) | ({"generic"} if match["what"] == "tune" else set())
        cpu = archspec.cpu.TARGETS[target]
        has_features = all(feature in cpu.features for feature in features)
        return match["name"] not in allowed and not (_plain(base) in allowed and has_features)
    if match := _FEATURE.match(flag):
        feature = match["name"].replace(".", "_")
        return feature in _features() and feature not in archspec.cpu.TARGETS[target].features
    return False


def _plain(name: str) -> str:
    return name.replace("-", "_")


@functools.lru_cache(maxsize=256)
def _names(target: str) -> frozenset[str]:
    """Return the names by which compilers know a target and its ancestors."""
    cpu = archspec.cpu.TARGETS[target]
    names = set()
    for one in (cpu, *cpu.ancestors):
        names.add(one.name)
        for entries in one.compilers.values():
            for entry in entries:
                names.add(_plain(entry.get("name", one.name)))
                names |= {
                    word.partition("=")[2]
                    for word in entry.get("flags", "").format(name=entry.get("name", "")).split()
                    if word.startswith(_OPTIONS)
                }
    return frozenset(names | set(map(_plain, names)))


@functools.cache
def _features() -> frozenset[str]:
    return frozenset().union(*(cpu.features for cpu in archspec.cpu.TARGETS.values()))
