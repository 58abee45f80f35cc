"""Leaves out settings of an environment that the base image's Spack does not read, and warns.

Pure. Spack stops at such a key; each of these is a preference, or changes how it looks for a
solution.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

import yaml

from image_builder.spack.spec_syntax import COMPILERS_ARE_PACKAGES

_PREFERS = (0, 22)
"""The release from which on `prefer` is read, also what stands for a package's own `compiler`."""


def fitting_section(
    section: Literal["concretizer", "view"], settings: Mapping[str, Any], release: tuple[int, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that `release` reads there, and the names of the others."""
    kept = {key: value for key, value in settings.items() if _is_read(section, key, release)}
    return kept, [key for key in settings if key not in kept]


def fitting_package(
    name: str, fields: Mapping[str, Any], release: tuple[int, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Return a package's settings that `release` reads, and the names of the others.

    From 0.23 on only `all` has compilers, targets and providers; one package's compiler is
    preferred in another way.
    """
    kept = dict(fields)
    dropped = [
        key
        for key in fields
        if not (name == "all" and key in ("compiler", "target", "providers"))
        and not _is_read("package", key, release)
    ]
    for key in dropped:
        value = kept.pop(key)
        if key == "compiler" and _PREFERS <= release < COMPILERS_ARE_PACKAGES:
            kept["prefer"] = [*(kept.get("prefer") or ()), *(f"%{one}" for one in value or ())]
    if "compiler" in dropped:
        dropped.remove("compiler")
        if release >= COMPILERS_ARE_PACKAGES:
            kept["compiler"] = fields["compiler"]
    return kept, dropped


def _is_read(section: str, key: str, release: tuple[int, ...]) -> bool:
    facts = _facts()[section].get(key, {})
    first, last = (_numbers(facts[name]) if name in facts else None for name in ("first", "last"))
    return (first is None or release[:2] >= first) and (last is None or release[:2] <= last)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@functools.cache
def _facts() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    text = resources.files("image_builder").joinpath("data/spack_settings.yaml").read_text("utf-8")
    loaded: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(text)
    return loaded
