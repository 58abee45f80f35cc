"""Reads what a description asks of Spack, as demands with alternatives and preferences. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from image_builder.sources.safe_yaml import Path
from image_builder.sources.spec_lists import Root
from image_builder.spack import spec
from image_builder.spack.spec import Node, Setting

Nodes = tuple[Node, ...]
ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """Describes what a description asks for: one of the `alternatives` has to be met.

    `path` is its place below `spack`, `package` the one it is about (`all`, a virtual package;
    empty for a root spec, whose nodes say so themselves). A preference gives way where it has to.
    `parts` are the places that a root spec of a matrix or a definition is made of.
    """

    path: Path
    package: str
    alternatives: tuple[Nodes, ...]
    is_preference: bool = False
    parts: tuple[tuple[Path, Nodes], ...] = ()


def demands_in(
    body: Mapping[str, Any], roots: Iterable[Root], release: tuple[int, ...]
) -> list[Demand]:
    """Return everything that a checked `spack` section asks for, with its definitions expanded.

    What has a condition (`when`) is left out: whether it is met is Spack's to say.
    """
    demands = [_of_root(root, release) for root in roots]
    for name, fields in (body.get("packages") or {}).items():
        demands += _of_package(name, fields or {}, release)
    return demands


def without_variant(demands: Iterable[Demand], variant: str) -> dict[str, Path]:
    """Return the packages wanted without a variant (`~cuda`), and where the description says so.

    A root spec, `require`, `prefer` and `variants` all say it alike; of alternatives, all have to.
    """
    refusing: dict[str, Path] = {}
    for demand in demands:
        if demand.package == ALL:
            continue
        for name in set.intersection(
            *(_refusing(nodes, variant, demand.package) for nodes in demand.alternatives)
        ):
            refusing.setdefault(name, demand.path)
    return refusing


def _refusing(nodes: Nodes, variant: str, package: str) -> set[str]:
    return {
        node.name or package
        for node in nodes
        if (node.name or (package if not node.sigil else ""))
        and not node.is_conditional
        and node.variants.get(variant) == "false"
    }


def _of_root(root: Root, release: tuple[int, ...]) -> Demand:
    named = [(part.path, spec.nodes(part.text, release)) for part in root.parts]
    return Demand(
        path=root.parts[0].path,
        package="",
        alternatives=(root.nodes,),
        parts=tuple(
            (path, (dataclasses.replace(first, name=first.name or root.name), *others))
            for path, (first, *others) in named
        ),
    )


def _of_package(name: str, fields: Mapping[str, Any], release: tuple[int, ...]) -> Iterator[Demand]:
    path: Path = ("packages", name)
    for key in ("require", "prefer"):
        rules = fields.get(key) or ()
        for at, rule in enumerate([rules] if isinstance(rules, str) else rules):
            here = (*path, key) if isinstance(rules, str) else (*path, key, at)
            if texts := _alternatives(rule):
                yield _demand(here, name, texts, release, is_preference=key == "prefer")
    conflicts = fields.get("conflict") or ()
    for at, rule in enumerate(conflicts):
        for text in _alternatives(rule):
            if refused := _negated(text, release):
                here = (*path, "conflict", at)
                yield Demand(path=here, package=name, alternatives=(refused,))
    variants = fields.get("variants") or ()
    for text in [variants] if isinstance(variants, str) else variants:
        yield _demand((*path, "variants"), name, [text], release, is_preference=True)
    if versions := fields.get("version"):
        texts = [f"@{version}" for version in versions]
        yield _demand((*path, "version", 0), name, texts, release, is_preference=True)
    if wanted := fields.get("target"):
        texts = [f"target={','.join(map(str, wanted))}"]
        yield _demand((*path, "target", 0), name, texts, release, is_preference=True)
    if providers := (fields.get("providers") or {}).get("mpi"):
        here = (*path, "providers", "mpi", 0)
        yield _demand(here, name, providers, release, is_preference=True)


def _negated(text: str, release: tuple[int, ...]) -> Nodes:
    """Return the demand that a conflict with one switch is: `~cuda` of `+cuda`; else nothing."""
    root, *others = spec.nodes(text, release)
    if others or root.version or len(root.settings) != 1 or not root.settings[0].is_switch:
        return ()
    (setting,) = root.settings
    value = "false" if setting.value == "true" else "true"
    word = ("+" if value == "true" else "~") + setting.key
    return (
        dataclasses.replace(root, settings=(Setting(key=setting.key, value=value, text=word),)),
    )


def _alternatives(rule: Any) -> list[str]:
    """Return the specs of a rule of which one has to be met; none for a rule under a condition."""
    if isinstance(rule, str):
        return [rule]
    if "when" in rule:
        return []
    return [rule["spec"]] if "spec" in rule else [*rule.get("one_of", rule.get("any_of", ()))]


def _demand(
    path: Path,
    package: str,
    texts: Iterable[str],
    release: tuple[int, ...],
    *,
    is_preference: bool,
) -> Demand:
    return Demand(
        path=path,
        package=package,
        alternatives=tuple(spec.nodes(text, release) for text in texts),
        is_preference=is_preference,
    )
