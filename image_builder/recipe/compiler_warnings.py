"""Warns of compilers and their flags that a workflow names and will not have. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from image_builder.recipe.system_conflicts import ImageSystem
from image_builder.sources.description import Description
from image_builder.spack.compiler_names import packaged_gcc
from image_builder.spack.spec import flags_of, nodes

_GNU = re.compile(r"(gcc|g\+\+|gfortran)-(\d+)(?:=.*)?\Z")
_BEFORE_PACKAGES = (0, 23)
"""How a compiler's name and version are read, whatever the release: `gcc@12`."""
_LANGUAGES = {"g++": "C++", "gfortran": "Fortran"}


def compiler_warnings(description: Description, image: ImageSystem) -> Iterator[str]:
    """Yield the preferred compilers that an image lacks, and GCCs without their other languages.

    Flags that Spack does not read are told, too.
    """
    yield from _preferred(description, image)
    yield from _unpackaged(description, image)
    yield from _incomplete(description)
    yield from _unread_flags(description)


def _preferred(description: Description, image: ImageSystem) -> Iterator[str]:
    packages = (description.spack or {}).get("packages") or {}
    for package, fields in packages.items() if image.compilers else ():
        for text in (fields or {}).get("compiler") or ():
            compiler = nodes(f"%{text}", _BEFORE_PACKAGES)[-1]
            if compiler.sigil and not image.has(compiler.name, compiler.version):
                line = description.line("spack", "packages", package, "compiler")
                asked = f"{compiler.name} {compiler.version}".strip()
                yield (
                    f"{description.file}, line {line}: the image has no {asked}: Spack takes "
                    f"{image.shown}."
                )


def _unpackaged(description: Description, image: ImageSystem) -> Iterator[str]:
    """Yield the GCCs under apt that the image's distribution does not have."""
    packaged = packaged_gcc(image.system) or ()
    for at, text in enumerate(description.apt) if packaged else ():
        match = _GNU.match(text)
        if match and int(match[2]) not in packaged:
            majors = " and ".join(map(str, packaged))
            yield (
                f"{description.file}, line {description.line('apt', at)}: {image.system} has no "
                f"{match[1]}-{match[2]}: its packages are those of gcc {majors}."
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


def _unread_flags(description: Description) -> Iterator[str]:
    """Yield the flags below `variants`, of which Spack takes the variants alone."""
    for name, fields in ((description.spack or {}).get("packages") or {}).items():
        variants = (fields or {}).get("variants") or ()
        for text in [variants] if isinstance(variants, str) else variants:
            if keys := list(dict.fromkeys(key for key, _ in flags_of(nodes(text)[0]))):
                line = description.line("spack", "packages", name, "variants")
                yield (
                    f"{description.file}, line {line}: {' and '.join(keys)} below variants is not "
                    "used: Spack reads flags in specs and below require."
                )
