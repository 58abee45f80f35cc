"""Reads which packages a description takes from the image instead of building them. Pure.

Spack never checks that they exist (spack/spack #2208); the recipe does, before it concretizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.sources.description import Description
from image_builder.sources.safe_yaml import Path

_USUAL = ("/usr", "/opt")


def externals_of(body: Mapping[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Yield each external's place below `spack`, the package, and a path that has to exist."""
    for name, fields in (body.get("packages") or {}).items():
        for at, external in enumerate((fields or {}).get("externals") or ()):
            here: Path = ("packages", name, "externals", at)
            yield (*here, "prefix"), name, external["prefix"]
            compilers = (external.get("extra_attributes") or {}).get("compilers") or {}
            for language, program in compilers.items():
                yield (*here, "extra_attributes", "compilers", language), name, program


def externals_warnings(description: Description, body: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for each external in a folder that base images and Debian do not have."""
    for path, name, place in externals_of(body):
        if not any(f"{place}/".startswith(f"{usual}/") for usual in _USUAL):
            line = description.line("spack", *path)
            yield (
                f"{description.file}, line {line}: {name} is taken from {place}, which an image "
                "rarely has: the build fails if it does not."
            )


def externals_list(description: Description) -> str:
    """Return what the recipe looks for before it concretizes.

    Each line is a path of the image, its package, and where the description names it.
    """
    return "".join(
        f"{place} {name} {description.file}, line {description.line('spack', *path)}\n"
        for path, name, place in externals_of(description.spack or {})
    )
