"""Finds packages, versions and variants of a workflow that the base image's Spack does not have.

Pure. What Spack could not load, and what the site's catalogue has, is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from image_builder.recipe.conflicts import Conflict, Rule
from image_builder.recipe.demands import ALL, Demand
from image_builder.request.cpu_targets import nearest
from image_builder.sources.description import Description
from image_builder.sources.git.revisions import is_commit
from image_builder.spack.compiler_names import is_compiler
from image_builder.spack.knowledge import KnownPackage, SpackKnowledge, newest_of
from image_builder.spack.spec import FLAGS, NOT_VARIANTS, Node
from image_builder.spack.spec_syntax import COMPILERS_ARE_PACKAGES

_NO_NAMED_VERSION = re.compile(r"git\.|[0-9a-f]{40}")


def package_rule(knows: SpackKnowledge | None, release: tuple[int, ...]) -> Rule:
    """Return the rule against demanded packages, versions and variants that Spack does not have."""

    def judge(demand: Demand, package: str, node: Node) -> list[Conflict | None]:
        if knows is None or demand.is_preference or _is_compiler(node, release):
            return []
        if node.name and knows.is_unknown(node.name):
            return [_unknown(demand, node.name, knows)]
        known = knows.package(package)
        if known is None:
            return []
        return [
            _unknown_version(demand, package, node, known, knows),
            *_unknown_variants(demand, package, node, known, release),
        ]

    return judge


def package_warnings(
    description: Description, release: tuple[int, ...], knows: SpackKnowledge | None
) -> Iterator[str]:
    """Yield a warning for each package below `packages` that Spack does not have.

    Spack passes over them: what is said of a misspelt package means nothing.
    """
    if knows is None:
        return
    for name in (description.spack or {}).get("packages") or {}:
        is_old_compiler = release < COMPILERS_ARE_PACKAGES and is_compiler(name)
        if name == ALL or is_old_compiler or not knows.is_unknown(name):
            continue
        close = knows.names_like(name)
        meant = f" Did you mean {' or '.join(close)}?" if close else ""
        yield (
            f"{description.file}, line {description.line('spack', 'packages', name)}: packages: "
            f"{name} is not used: Spack {knows.release} has no such package.{meant}"
        )


def _is_compiler(node: Node, release: tuple[int, ...]) -> bool:
    """Return whether a node is a compiler: Spack takes it as the image has it, by its old name too."""
    return node.sigil == "%" and (release < COMPILERS_ARE_PACKAGES or is_compiler(node.name))


def _unknown(demand: Demand, name: str, knows: SpackKnowledge) -> Conflict:
    close = knows.names_like(name)
    written = f"Write {' or '.join(close)}, or put" if close else "Put"
    return Conflict(
        path=demand.path,
        problem=f"names the package {name}, which Spack {knows.release} does not have",
        hint=f"{written} its recipe into the catalogue.",
        has_two_sides=False,
    )


def _unknown_version(
    demand: Demand, package: str, node: Node, known: KnownPackage, knows: SpackKnowledge
) -> Conflict | None:
    version = node.version
    if not version or "=" in version or _NO_NAMED_VERSION.match(version) or not known.versions:
        return None
    if known.matching(version):
        return None
    return Conflict(
        path=demand.path,
        problem=f"names {package}@{version}, which Spack {knows.release} does not have",
        hint=f"Write a version that it has, such as {_there(version, known)}.",
        has_two_sides=False,
    )


def _there(version: str, known: KnownPackage) -> str:
    """Return a version that is nearest to one that is not there, and the newest."""
    newest = newest_of(known.versions) or known.versions[0]
    parts = version.lstrip("=").split(".") if re.fullmatch(r"=?[\w.-]+", version) else []
    series = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    near = next((one for text in series if (one := newest_of(known.matching(text)))), newest)
    return newest if near == newest else f"{near}, or {newest}, the newest"


def _unknown_variants(
    demand: Demand, package: str, node: Node, known: KnownPackage, release: tuple[int, ...]
) -> Iterator[Conflict]:
    has_flags = any(setting.key in FLAGS for setting in node.settings)
    for setting in node.settings:
        name = setting.key
        if setting.propagates or name in NOT_VARIANTS or name in known.variants:
            continue
        if name == "commit" and release >= COMPILERS_ARE_PACKAGES:
            if not is_commit(setting.value):
                yield Conflict(
                    path=demand.path,
                    problem=f"sets commit to {setting.value[:60]!r}, which is no commit's hash",
                    hint="Write all 40 digits of it.",
                    has_two_sides=False,
                )
            continue
        close = nearest(name, known.variants)
        hint = f"Write {' or '.join(close)}." if close else "Remove it."
        if has_flags and setting.text.startswith("-"):
            hint = "Put several flags into quotes, such as cflags='-O3 -g'."
        yield Conflict(
            path=demand.path,
            problem=f"names the variant {name}, which {package} does not have",
            hint=hint,
            has_two_sides=False,
        )
