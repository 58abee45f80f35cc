"""Warns of compilers that a workflow prefers or installs by apt and will not have. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from image_builder.recipe.compilers import named
from image_builder.recipe.system_conflicts import ImageSystem
from image_builder.sources.description import Description
from image_builder.spack.version_ranges import overlap

_GNU = re.compile(r"(gcc|g\+\+|gfortran)-(\d+)(?:=.*)?\Z")
_LANGUAGES = {"g++": "C++", "gfortran": "Fortran"}


def compiler_warnings(description: Description, image: ImageSystem) -> Iterator[str]:
    """Yield the preferred compilers that an image lacks, and GCCs without their other languages."""
    yield from _preferred(description, image)
    yield from _incomplete(description)


def _preferred(description: Description, image: ImageSystem) -> Iterator[str]:
    everywhere = ((description.spack or {}).get("packages") or {}).get("all") or {}
    wanted = [str(text) for text in everywhere.get("compiler") or ()]
    there = [(name, version.removesuffix(".99")) for name, version in image.compilers]
    for name, version in named(wanted) if there else ():
        asked = version.removesuffix(".99")
        if not any(name == own and overlap(asked, has) for own, has in there):
            line = description.line("spack", "packages", "all", "compiler")
            yield (
                f"{description.file}, line {line}: the image has no {name} {asked}: Spack takes "
                f"{image.shown}."
            )


def _incomplete(description: Description) -> Iterator[str]:
    packaged = [
        (match, at) for at, text in enumerate(description.apt) if (match := _GNU.match(text))
    ]
    there = {(match[1], match[2]) for match, _ in packaged}
    for match, at in packaged:
        missing = [name for name in _LANGUAGES if (name, match[2]) not in there]
        if match[1] == "gcc" and missing and description.spack:
            languages = " and ".join(_LANGUAGES[name] for name in missing)
            packages = " and ".join(f"{name}-{match[2]}" for name in missing)
            yield (
                f"{description.file}, line {description.line('apt', at)}: {match[0]} compiles C "
                f"alone: packages in {languages} need {packages} too."
            )
