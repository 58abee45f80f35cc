"""Finds what a description keeps Spack from building, though the machine needs it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from image_builder.recipe.conflicts import Conflict
from image_builder.recipe.demands import ALL
from image_builder.request.mpi_gpu import Gpu, Mpi, is_mpi
from image_builder.sources.description import Description
from image_builder.sources.safe_yaml import Path
from image_builder.sources.spec_lists import Root
from image_builder.spack import spec
from image_builder.spack.knowledge import SpackKnowledge


def excluded(
    description: Description,
    site: Mapping[str, Any],
    parts: tuple[Mpi | Gpu | None, ...],
    knows: SpackKnowledge | None,
) -> Iterator[Conflict]:
    """Yield what keeps the machine's MPI or GPU runtime from being built.

    `site` are the `packages` of the site's own Spack configuration. What Spack may find in the
    image by itself, of the base or by apt, is not judged.
    """
    packages = (description.spack or {}).get("packages") or {}
    for part in parts:
        if part is None:
            continue
        yield from _conflicting(packages, part)
        has_external = any((one.get(part.name) or {}).get("externals") for one in (packages, site))
        may_be_found = knows is None or part.name in knows.externals or description.apt
        if not has_external and not may_be_found:
            yield from _not_buildable(packages, part)


def _not_buildable(packages: Mapping[str, Any], part: Mpi | Gpu) -> Iterator[Conflict]:
    place = _said_of(packages, _places(part.name))
    if (packages.get(place) or {}).get("buildable") is False:
        yield Conflict(
            path=("packages", place, "buildable"),
            problem=f"is false, the request names {part.spec}, which has no external",
            hint="Leave it out, or name an external that the image has.",
        )


def unbuildable_roots(
    description: Description,
    site: Mapping[str, Any],
    roots: Iterable[Root],
    knows: SpackKnowledge | None,
) -> tuple[list[Conflict], list[str]]:
    """Return each root spec that is not to be built and is no external: conflicts and warnings.

    It is a warning where the image may have it and Spack looks for it.
    """
    packages = (description.spack or {}).get("packages") or {}
    conflicts: list[Conflict] = []
    warnings: list[str] = []
    for name in dict.fromkeys(root.name for root in roots):
        place = _said_of(packages, (name,))
        known = knows.package(name) if knows is not None else None
        if (packages.get(place) or {}).get("buildable") is not False or known is None:
            continue
        has_external = any((one.get(name) or {}).get("externals") for one in (packages, site))
        if has_external or (knows is not None and name in knows.externals):
            continue
        path: Path = ("packages", place, "buildable")
        problem = f"is false, and specs names {name}, which has no external"
        if known.may_be_found:
            line = description.line("spack", *path)
            warnings.append(
                f"{description.file}, line {line}: packages: {place}: buildable {problem}: the "
                "build fails unless Spack finds one in the image."
            )
        else:
            hint = "Leave it out, or name an external that the image has."
            conflicts.append(Conflict(path=path, problem=problem, hint=hint, has_two_sides=False))
    return conflicts, warnings


def _said_of(packages: Mapping[str, Any], places: Iterable[str]) -> str:
    """Return which of the places, the nearest first, says whether a package may be built."""
    return next(
        (one for one in places if (packages.get(one) or {}).get("buildable") is not None), ALL
    )


def _places(name: str) -> tuple[str, ...]:
    """Return the packages whose settings decide over one, the nearest first."""
    return (name, "mpi") if is_mpi(name) else (name,)


def _conflicting(packages: Mapping[str, Any], part: Mpi | Gpu) -> Iterator[Conflict]:
    """Yield each `conflict` that every version of the machine's MPI or GPU runtime meets."""
    for name in _places(part.name):
        for at, rule in enumerate((packages.get(name) or {}).get("conflict") or ()):
            text = rule if isinstance(rule, str) else "" if "when" in rule else rule.get("spec", "")
            root, *others = spec.nodes(text)
            is_meant = bool(text) and (root.name or name) == part.name
            is_whole = not root.version or (
                bool(part.version) and spec.version_satisfies(part.version, root.version)
            )
            if is_meant and is_whole and not root.settings and not others:
                yield Conflict(
                    path=("packages", name, "conflict", at),
                    problem=f"excludes {text}, the request names {part.spec}",
                    hint="Remove it, or request another one.",
                )
