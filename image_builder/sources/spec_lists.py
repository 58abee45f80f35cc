"""Expands `specs` and `definitions` of a description to root specs. Pure.

A `$name` stands for the specs of a definition before it, a matrix for each combination of its rows,
a group (Spack 1.2) for its specs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from image_builder.sources.safe_yaml import Path
from image_builder.spack import spec
from image_builder.spack.spec import Node

MAX_ROOTS = 1000
"""The most specs that a description, or one of its definitions, may expand to."""
MAX_PARTS = 10_000
"""The most texts that they may be joined from, together."""
MAX_EXCLUDED = 50
"""The most specs that a matrix may exclude."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Holds one text of a root spec, and its place below `spack`."""

    path: Path
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root:
    """Holds one root spec: a text of the description, or those that a matrix combines."""

    parts: tuple[Part, ...]
    nodes: tuple[Node, ...]

    @property
    def text(self) -> str:
        return " ".join(part.text for part in self.parts)

    @property
    def name(self) -> str:
        return self.nodes[0].name


Unknown = tuple[Path, str, list[str]]
"""A `$name` without a definition: its place, the name, and the names that are defined before it."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Counts the root specs that a list expands to, and the texts that they consist of."""

    roots: int = 0
    parts: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.roots + other.roots, self.parts + other.parts)

    @property
    def is_too_large(self) -> bool:
        return self.roots > MAX_ROOTS or self.parts > MAX_PARTS


def count_roots(body: Mapping[str, Any]) -> tuple[dict[str, Size], list[Unknown]]:
    """Return what each definition and `specs` expand to, and the `$names` that are not defined.

    Nothing is expanded for that. `specs` comes under the empty name.
    """
    sizes: dict[str, Size] = {}
    unknown: list[Unknown] = []
    for at, entry in enumerate(body.get("definitions") or ()):
        for name, entries in (entry or {}).items():
            here: Path = ("definitions", at, name)
            sizes[name] = sizes.get(name, Size()) + _count(entries, here, sizes, unknown)
    sizes[""] = _count(body.get("specs"), ("specs",), sizes, unknown)
    return sizes, unknown


def _count(entries: Any, path: Path, sizes: Mapping[str, Size], unknown: list[Unknown]) -> Size:
    total = Size()
    for at, entry in enumerate(entries or ()):
        here = (*path, at)
        if isinstance(entry, dict):
            total += _count_matrix(entry, here, sizes, unknown)
        elif isinstance(entry, str) and entry.strip().startswith("$"):
            name = _referred(entry)
            if name not in sizes:
                unknown.append((here, entry.strip(), list(sizes)))
            total += sizes.get(name, Size(1, 1))
        elif entry is not None:
            total += Size(1, 1)
    return total


def _count_matrix(
    entry: Mapping[str, Any], path: Path, sizes: Mapping[str, Size], unknown: list[Unknown]
) -> Size:
    """Return the size of a matrix, whose combinations take one of every row.

    Numbers beyond the limits are cut.
    """
    combined = Size(1, 0)
    for at, row in enumerate(entry.get("matrix") or ()):
        one = _count(row, (*path, "matrix", at), sizes, unknown)
        combined = Size(
            min(combined.roots * one.roots, MAX_ROOTS + 1),
            min(combined.parts * one.roots + combined.roots * one.parts, MAX_PARTS + 1),
        )
    return combined


def roots_in(body: Mapping[str, Any], release: tuple[int, ...] | None) -> tuple[Root, ...]:
    """Return the root specs of a checked `spack` section, as `release` reads them."""
    defined: dict[str, list[tuple[Part, ...]]] = {}
    for at, entry in enumerate(body.get("definitions") or ()):
        for name, entries in (entry or {}).items():
            expanded = _expand(entries, ("definitions", at, name), defined, release)
            defined.setdefault(name, []).extend(itertools.islice(expanded, MAX_ROOTS))
    expanded = _expand(body.get("specs"), ("specs",), defined, release)
    return tuple(_root(parts, release) for parts in itertools.islice(expanded, MAX_ROOTS))


def _root(parts: tuple[Part, ...], release: tuple[int, ...] | None) -> Root:
    nodes = spec.constrained(spec.nodes(part.text, release) for part in parts)
    return Root(parts=parts, nodes=nodes)


def _expand(
    entries: Any,
    path: Path,
    defined: Mapping[str, Sequence[tuple[Part, ...]]],
    release: tuple[int, ...] | None,
) -> Iterator[tuple[Part, ...]]:
    for at, entry in enumerate(entries or ()):
        here = (*path, at)
        if isinstance(entry, dict):
            yield from _expand(entry.get("specs"), (*here, "specs"), defined, release)
            if entry.get("matrix"):
                yield from _matrix(entry, here, defined, release)
        elif isinstance(entry, str) and entry.strip().startswith("$"):
            sigil = entry.strip()[1:2] if entry.strip()[1:2] in ("^", "%") else ""
            yield from (_behind(sigil, parts) for parts in defined.get(_referred(entry), ()))
        elif entry is not None:
            yield (Part(path=here, text=entry.strip()),)


def _referred(entry: str) -> str:
    return entry.strip().lstrip("$").lstrip("^%")


def _behind(sigil: str, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return a spec as a dependency: `$^libs` stands for each spec of `libs` behind `^`."""
    if not sigil:
        return parts
    return (dataclasses.replace(parts[0], text=sigil + parts[0].text), *parts[1:])


def _matrix(
    entry: Mapping[str, Any],
    path: Path,
    defined: Mapping[str, Sequence[tuple[Part, ...]]],
    release: tuple[int, ...] | None,
) -> Iterator[tuple[Part, ...]]:
    rows = [
        list(itertools.islice(_expand(row, (*path, "matrix", at), defined, release), MAX_ROOTS))
        for at, row in enumerate(entry.get("matrix") or ())
    ]
    excluded = [
        _root(parts, release).nodes
        for parts in _expand(entry.get("exclude"), (*path, "exclude"), defined, release)
    ]
    for combination in itertools.islice(itertools.product(*rows), MAX_ROOTS):
        parts = tuple(itertools.chain.from_iterable(combination))
        nodes = _root(parts, release).nodes if excluded else ()
        if not any(_satisfies(nodes, wanted) for wanted in excluded):
            yield parts


def _satisfies(nodes: Sequence[Node], wanted: Iterable[Node]) -> bool:
    """Return whether one of `nodes` is literally what each of `wanted` asks for."""
    return all(any(_is_a(node, one) for node in nodes) for one in wanted if one != Node())


def _is_a(node: Node, wanted: Node) -> bool:
    has_name = node.name == wanted.name if wanted.name else node.sigil == wanted.sigil
    has_version = not wanted.version or (
        bool(node.version) and spec.version_satisfies(node.version, wanted.version)
    )
    has = {(setting.key, setting.value) for setting in node.settings}
    return has_name and has_version and {(one.key, one.value) for one in wanted.settings} <= has
