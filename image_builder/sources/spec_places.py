"""Finds every place of a `spack` section where a spec stands. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.sources.safe_yaml import Path

_NO_SPECS = ("group", "needs", "explicit")
"""The keys of a group whose values are no specs."""
_RULES = ("require", "prefer", "conflict", "variants")


def spec_places(body: Mapping[str, Any]) -> Iterator[tuple[Path, str, bool]]:
    """Yield each spec's place below `spack`, its text, and whether it has to begin with a name."""
    for path, text in _listed(body.get("specs"), ("specs",)):
        yield path, text, len(path) == 2 or path[2] == "specs"
    for path, text in _listed(body.get("definitions"), ("definitions",)):
        yield path, text, False
    for name, fields in (body.get("packages") or {}).items():
        yield from _of_package(("packages", name), fields or {})
    yield from _of_views(body.get("view"))


def _of_package(path: Path, fields: Mapping[str, Any]) -> Iterator[tuple[Path, str, bool]]:
    for key in _RULES:
        for place, text in _listed(fields.get(key), (*path, key)):
            if place[-1] != "message":
                yield place, text, False
    for place, text in _listed(fields.get("providers"), (*path, "providers")):
        yield place, text, True
    for at, external in enumerate(fields.get("externals") or ()):
        yield (*path, "externals", at, "spec"), external["spec"], True


def _of_views(view: Any) -> Iterator[tuple[Path, str, bool]]:
    for name, fields in view.items() if isinstance(view, dict) else ():
        for key in ("select", "exclude"):
            for place, text in _listed((fields or {}).get(key), ("view", name, key)):
                yield place, text, False
        for wanted in (fields or {}).get("projections") or ():
            yield ("view", name, "projections", wanted), wanted, False


def _listed(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        if not value.strip().startswith("$"):
            yield path, value.strip()
    elif isinstance(value, dict):
        for key, entry in value.items():
            if key not in _NO_SPECS:
                yield from _listed(entry, (*path, key))
    elif isinstance(value, list):
        for at, entry in enumerate(value):
            yield from _listed(entry, (*path, at))
