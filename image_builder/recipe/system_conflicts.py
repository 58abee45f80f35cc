"""Finds compilers and systems that a workflow names and the base image does not have. Pure.

What is not known of an image is not judged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from image_builder.docker.base_image import BaseFacts
from image_builder.recipe.compilers import available
from image_builder.recipe.conflicts import Conflict, Rule
from image_builder.recipe.demands import Demand
from image_builder.spack.knowledge import SpackKnowledge
from image_builder.spack.spec import Node, nodes
from image_builder.spack.spec_syntax import COMPILERS_ARE_PACKAGES
from image_builder.spack.version_ranges import overlap

_SYSTEM_ALIASES = frozenset(
    {"default_os", "default", "frontend", "backend", "fe", "be", "linux", "*", ""}
)
_OPEN = ".99"
"""How `compilers.available` ends a version of which the rest is not known."""
_OF_DEBIAN = {"debian": r"\d+", "ubuntu": r"\d+\.\d+"}
"""Systems whose names in Spack are their id and this much of their version."""
_OLD_NAMES = {"clang": "llvm", "oneapi": "intel-oneapi-compilers"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSystem:
    """Holds an image's compilers as (name, version), and its operating system as Spack names it."""

    compilers: tuple[tuple[str, str], ...]
    system: str
    platform: str = "linux"

    @property
    def shown(self) -> str:
        """Return the compilers as a message shows them."""
        names = dict.fromkeys(
            f"{name} {version.removesuffix(_OPEN)}" for name, version in self.compilers
        )
        return ", ".join(names) + (" alone" if len(names) == 1 else "")


def image_system(
    base: BaseFacts,
    apt: Iterable[str],
    packages: Iterable[Mapping[str, Any]],
    knows: SpackKnowledge | None,
) -> ImageSystem:
    """Return what an image will have: the base's compilers, apt's, and those that are externals.

    `packages` are the `packages` sections of the site and the description.
    """
    compilers = available(base.compilers, apt)
    compilers += _split(knows.compilers if knows is not None else ())
    for section in packages:
        for fields in section.values():
            externals = (fields or {}).get("externals") or ()
            compilers += _split(str(entry.get("spec", "")) for entry in externals if entry)
    return ImageSystem(
        compilers=tuple(dict.fromkeys(compilers)) if base.compilers or knows else (),
        system=knows.system if knows is not None else _system(base),
    )


def system_rule(image: ImageSystem, release: tuple[int, ...]) -> Rule:
    """Return the rule against compilers and systems that are demanded and that an image lacks."""

    def judge(demand: Demand, _: str, node: Node) -> Conflict | None:
        if demand.is_preference:
            return None
        return _compiler(demand, node, image, release) or _system_of(demand, node, image)

    return judge


def _compiler(
    demand: Demand, node: Node, image: ImageSystem, release: tuple[int, ...]
) -> Conflict | None:
    if node.sigil != "%" or not image.compilers or not _is_compiler(node.name, release):
        return None
    if any(_is_it(node.name, node.version, *compiler) for compiler in image.compilers):
        return None
    asked = node.name + (f"@{node.version}" if node.version else "")
    return Conflict(
        path=demand.path,
        problem=f"asks for the compiler {asked}, the image has {image.shown}",
        hint=_compiler_hint(node.name, node.version),
    )


def _is_compiler(name: str, release: tuple[int, ...]) -> bool:
    """Return whether a name is a compiler's: from Spack 1.0 on `%` takes any direct dependency."""
    return bool(name) and (release < COMPILERS_ARE_PACKAGES or name in _COMPILERS)


_COMPILERS = frozenset(
    {
        "gcc",
        "clang",
        "llvm",
        "oneapi",
        "intel-oneapi-compilers",
        "intel",
        "intel-oneapi-compilers-classic",
        "nvhpc",
        "aocc",
        "cce",
        "fj",
        "fujitsu-compiler",
        "arm",
        "acfl",
        "xl",
        "nag",
        "pgi",
    }
)
"""Packages that are compilers and nothing else that one would link."""


def _is_it(name: str, version: str, has: str, has_version: str) -> bool:
    own = has_version.removesuffix(_OPEN)
    return _same(name) == _same(has) and overlap(version, own)


def _same(name: str) -> str:
    return _OLD_NAMES.get(name, name)


def _compiler_hint(name: str, version: str) -> str:
    major = re.match(r"=?(\d+)", version)
    if name == "gcc" and major:
        packages = ", ".join(f"{part}-{major[1]}" for part in ("gcc", "g++", "gfortran"))
        return f"Remove it, or add {packages} under apt."
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
    return Conflict(path=demand.path, problem=problem, hint="Remove it.")


def _system(base: BaseFacts) -> str:
    shape = _OF_DEBIAN.get(base.os_id)
    version = re.match(shape, base.os_version) if shape else None
    return f"{base.os_id}{version.group()}" if version else ""


def _split(specs: Iterable[str]) -> list[tuple[str, str]]:
    firsts = [nodes(text)[0] for text in specs if text]
    return [(node.name, node.version.lstrip("=")) for node in firsts]
