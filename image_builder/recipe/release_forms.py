"""Finds specs that the base image's Spack reads in another sense than meant, or not at all. Pure.

`sources.description` does not know the release; here it is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from image_builder.sources.description import Description
from image_builder.sources.problems import Problem, raise_all
from image_builder.sources.safe_yaml import Path
from image_builder.sources.spec_places import spec_places
from image_builder.spack import spec
from image_builder.spack.compiler_names import is_compiler, own_variants, package_of
from image_builder.spack.spec_syntax import COMPILERS_ARE_PACKAGES


def refuse_unread(description: Description, release: tuple[int, ...]) -> None:
    """Raise `BadDescription` for every spec that this Spack does not read as it is meant."""
    problems = [
        Problem(
            description.line("spack", *path) or 1,
            f"{_place(path)} {problem}",
            hint,
        )
        for path, text, named in spec_places(description.spack or {})
        for problem, hint in _problems(text, named, release)
    ]
    if release >= COMPILERS_ARE_PACKAGES:
        problems += [
            Problem(
                description.line("spack", *path) or 1,
                f"{_place(path)} names a definition, which Spack expands there before 1.0 alone",
                "Write the specs themselves.",
            )
            for path in _references_excluded(description.spack or {}, ())
        ]
    raise_all(problems, description.file)


def _references_excluded(value: Any, path: Path) -> Iterator[Path]:
    """Yield each place in the `exclude` of a matrix that names a definition."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        here = (*path, key)
        if isinstance(part, dict | list):
            yield from _references_excluded(part, here)
        elif isinstance(part, str) and path[-1:] == ("exclude",) and part.strip()[:1] == "$":
            yield here


def _problems(text: str, named: bool, release: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    problem = spec.problem(text, named=named, release=release)
    if problem:
        yield problem
    elif release >= COMPILERS_ARE_PACKAGES:
        for node in spec.nodes(text, release):
            if node.sigil == "%":
                yield from _compiler_problems(text, node, release)


def _compiler_problems(
    text: str, node: spec.Node, release: tuple[int, ...]
) -> Iterator[tuple[str, str]]:
    """Yield words behind a compiler: from Spack 1.0 on they belong to it; most mean the package."""
    if not is_compiler(node.name):
        return
    written = f"%{node.name}@{node.version}" if node.version else f"%{node.name}"
    foreign = [one.text for one in node.settings if one.key not in own_variants(node.name)]
    if foreign:
        yield (
            f"{text!r} gives {' '.join(foreign)} to the compiler, as Spack reads it from 1.0 on",
            f"Write {' '.join(foreign)} before {written}.",
        )
    if node.name != package_of(node.name) and node.name in _NOT_READ:
        yield (
            f"{text!r} names {node.name}, which Spack {'.'.join(map(str, release))} does not have",
            f"Write %{package_of(node.name)}.",
        )


_NOT_READ = frozenset({"dpcpp", "pgi", "xl_r"})
"""Names of before 1.0 that Spack does not translate itself (its `aliases.py` has the others)."""


def _place(path: Path) -> str:
    return ": ".join(str(part) for part in path if isinstance(part, str))
