"""Finds compilers and systems that a workflow names and the base image does not have. Pure.

What is not known of an image is not judged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from image_builder.docker.base_image import BaseFacts
from image_builder.recipe.compilers import available
from image_builder.recipe.conflicts import Conflict, Rule
from image_builder.recipe.demands import Demand
from image_builder.spack.compiler_names import (
    gcc_packages,
    is_compiler,
    package_of,
    packaged_gcc,
)
from image_builder.spack.knowledge import SpackKnowledge
from image_builder.spack.releases import FIRST_WITH_GROUPS
from image_builder.spack.spec import Node, nodes, version_satisfies
from image_builder.spack.spec_syntax import COMPILERS_ARE_PACKAGES
from image_builder.spack.version_ranges import overlap

_SYSTEM_ALIASES = frozenset(
    {"default_os", "default", "frontend", "backend", "fe", "be", "linux", "*", ""}
)
_OPEN = ".99"
"""How `compilers.available` ends a version of which the rest is not known."""
_OF_DEBIAN = {"debian": r"\d+", "ubuntu": r"\d+\.\d+"}
"""Systems whose names in Spack are their id and this much of their version."""
_LANGUAGES = ("c", "cxx", "fortran")
_LINKED = frozenset({"llvm-amdgpu"})
"""Compilers that are also libraries, which Spack builds for the packages that link them."""
_APT_CLANG = frozenset({"clang"})
"""Debian's compilers without a version in their names, beside the base image's own GCC."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSystem:
    """Holds an image's compilers as (name, version), and its operating system as Spack names it.

    Of `unversioned` compilers the version is not known: the distribution's own, and those that a
    group of specs builds for others.
    """

    compilers: tuple[tuple[str, str], ...]
    system: str
    platform: str = "linux"
    unversioned: frozenset[str] = frozenset()

    @property
    def shown(self) -> str:
        """Return the compilers as a message shows them."""
        names = dict.fromkeys(
            f"{name} {version.removesuffix(_OPEN)}" for name, version in self.compilers
        )
        return ", ".join(names) + (" alone" if len(names) == 1 else "")

    def has(self, name: str, version: str) -> bool:
        """Return whether a compiler is there, in one version of a range, or may be."""
        return package_of(name) in self.unversioned or any(
            package_of(name) == package_of(own) and _is_within(own_version, version)
            for own, own_version in self.compilers
        )


def image_system(
    base: BaseFacts,
    apt: Sequence[str],
    packages: Iterable[Mapping[str, Any]],
    knows: SpackKnowledge | None,
    built: Iterable[str] = (),
) -> ImageSystem:
    """Return what an image will have: the base's compilers, apt's, and those that are externals.

    `packages` are the `packages` sections of the site and the description; `built` are compilers
    that specs build for those behind them.
    """
    compilers = available(base.compilers, apt)
    compilers += _split(knows.compilers if knows is not None else ())
    for section in packages:
        for name, fields in section.items():
            externals = ((fields or {}).get("externals") or ()) if is_compiler(name) else ()
            compilers += _split(str(entry.get("spec", "")) for entry in externals if entry)
    return ImageSystem(
        compilers=tuple(dict.fromkeys(compilers)) if base.compilers or knows else (),
        system=knows.system if knows is not None else _system(base),
        unversioned=frozenset(map(package_of, (*built, *(_APT_CLANG & set(apt))))),
    )


def compilers_of_groups(body: Mapping[str, Any], release: tuple[int, ...]) -> Iterator[str]:
    """Yield the compilers that a group of specs builds, which others may then use (Spack 1.2)."""
    entries = (body.get("specs") or ()) if release >= FIRST_WITH_GROUPS else ()
    for entry in entries:
        for text in (entry.get("specs") or ()) if isinstance(entry, dict) else ():
            name = nodes(text, release)[0].name if isinstance(text, str) else ""
            if is_compiler(name):
                yield name


def system_rule(image: ImageSystem, release: tuple[int, ...]) -> Rule:
    """Return the rule against compilers and systems that are demanded and that an image lacks."""

    def judge(demand: Demand, _: str, node: Node) -> list[Conflict | None]:
        return [_compiler(demand, node, image, release), _system_of(demand, node, image)]

    return judge


def _compiler(
    demand: Demand, node: Node, image: ImageSystem, release: tuple[int, ...]
) -> Conflict | None:
    named = _compiler_named(demand, node, release)
    if not named or not image.compilers or image.has(named, node.version):
        return None
    asked = named + (f"@{node.version}" if node.version else "")
    return Conflict(
        path=demand.path,
        problem=f"asks for the compiler {asked}, the image has {image.shown}",
        hint=_compiler_hint(named, node.version, image),
        side="image",
    )


def _compiler_named(demand: Demand, node: Node, release: tuple[int, ...]) -> str:
    """Return the compiler that a node asks for, or nothing.

    From Spack 1.0 on `%` takes any direct dependency, and languages are virtual packages.
    """
    if release < COMPILERS_ARE_PACKAGES:
        return node.name if node.sigil == "%" else ""
    is_asked = node.sigil == "%" or demand.package in _LANGUAGES
    is_judged = is_compiler(node.name) and package_of(node.name) not in _LINKED
    return node.name if is_asked and is_judged else ""


def _is_within(own: str, wanted: str) -> bool:
    """Return whether a compiler's version is in a range; of apt's only its beginning is known."""
    if wanted.startswith("=") and not own.endswith(_OPEN):
        return version_satisfies(own, wanted)
    return overlap(wanted, own.removesuffix(_OPEN))


def _compiler_hint(name: str, version: str, image: ImageSystem) -> str:
    plain = version.lstrip("=")
    if plain != version and image.has(name, plain):
        return f"Write {name}@{plain}: with = no other version is meant."
    major = re.match(r"\d+", plain)
    if major and image.has(name, major[0]):
        return f"Write {name}@{major[0]}: the image has no other of it."
    packaged = packaged_gcc(image.system)
    if name == "gcc" and major and (packaged is None or int(major[0]) in packaged):
        return f"Remove it, or add {gcc_packages(major[0])} under apt."
    return "Remove it, or choose a base image that has it."


def _system_of(demand: Demand, node: Node, image: ImageSystem) -> Conflict | None:
    asked = node.variants
    triple = asked.get("arch", "").split("-", 2)
    platform, system = triple[:2] if len(triple) == 3 else ("", "")
    system = asked.get("os") or asked.get("operating_system") or system
    platform = asked.get("platform") or platform
    if platform not in (*_SYSTEM_ALIASES, image.platform):
        problem = f"asks for platform {platform}, the image is {image.platform}"
    elif image.system and system not in (*_SYSTEM_ALIASES, image.system):
        problem = f"asks for {system}, the image is {image.system}"
    else:
        return None
    return Conflict(path=demand.path, problem=problem, hint="Remove it.", side="image")


def _system(base: BaseFacts) -> str:
    shape = _OF_DEBIAN.get(base.os_id)
    version = re.match(shape, base.os_version) if shape else None
    return f"{base.os_id}{version.group()}" if version else ""


def _split(specs: Iterable[str]) -> list[tuple[str, str]]:
    firsts = [nodes(text)[0] for text in specs if text]
    return [(node.name, node.version.lstrip("=")) for node in firsts]
