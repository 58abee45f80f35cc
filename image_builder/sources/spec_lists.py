"""`specs` and `definitions` of a description: which root specs they expand to. Pure.

A `$name` stands for the specs of a definition before it, a matrix for each combination of its rows,
a group (Spack 1.2) for its specs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from image_builder.sources.safe_yaml import Path
from image_builder.spack import spec
from image_builder.spack.spec import Node

MAX_ROOTS = 2000
"""The most specs that a description may expand to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One text of a root spec, and its place below `spack`."""

    path: Path
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root:
    """One root spec: a text of the description, or those that a combination of a matrix joins."""

    parts: tuple[Part, ...]
    nodes: tuple[Node, ...]

    @property
    def text(self) -> str:
        return " ".join(part.text for part in self.parts)

    @property
    def name(self) -> str:
        return self.nodes[0].name


Unknown = tuple[Path, str, list[str]]
"""A `$name` without a definition: its place, the name, and the names defined before."""


def count_roots(body: Mapping[str, Any]) -> tuple[int, list[Unknown]]:
    """Return how many root specs `body` expands to, and the `$names` in it that are not defined."""
    sizes: dict[str, int] = {}
    unknown: list[Unknown] = []
    for at, entry in enumerate(body.get("definitions") or ()):
        for name, entries in (entry or {}).items():
            here: Path = ("definitions", at, name)
            sizes[name] = sizes.get(name, 0) + _count(entries, here, sizes, unknown)
    return _count(body.get("specs"), ("specs",), sizes, unknown), unknown


def _count(entries: Any, path: Path, sizes: Mapping[str, int], unknown: list[Unknown]) -> int:
    total = 0
    for at, entry in enumerate(entries or ()):
        here = (*path, at)
        if isinstance(entry, dict):
            total += _count(entry.get("specs"), (*here, "specs"), sizes, unknown)
            rows = enumerate(entry.get("matrix") or ())
            counts = [_count(row, (*here, "matrix", n), sizes, unknown) for n, row in rows]
            total += math.prod(counts) if counts else 0
        elif isinstance(entry, str) and entry.strip().startswith("$"):
            name = _referred(entry)
            if name not in sizes:
                unknown.append((here, entry.strip(), list(sizes)))
            total += sizes.get(name, 1)
        elif entry is not None:
            total += 1
    return total


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
    """`$^libs` stands for each of the definition's specs as a dependency."""
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
    excluded = [spec.nodes(text, release) for text in entry.get("exclude") or ()]
    for combination in itertools.islice(itertools.product(*rows), MAX_ROOTS):
        parts = tuple(itertools.chain.from_iterable(combination))
        if not any(_satisfies(_root(parts, release).nodes, nodes) for nodes in excluded):
            yield parts


def _satisfies(nodes: Sequence[Node], wanted: Iterable[Node]) -> bool:
    """Whether one of `nodes` is, in its words, what each of `wanted` asks for."""
    return all(any(_is_a(node, one) for node in nodes) for one in wanted if one != Node())


def _is_a(node: Node, wanted: Node) -> bool:
    has_name = node.name == wanted.name if wanted.name else node.sigil == wanted.sigil
    has_version = not wanted.version or (
        bool(node.version) and spec.version_satisfies(node.version, wanted.version)
    )
    has = {(setting.key, setting.value) for setting in node.settings}
    return has_name and has_version and {(one.key, one.value) for one in wanted.settings} <= has
