"""Which CPU an image is for: archspec's targets, the names people use for them, and the platforms
they run on.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import archspec.cpu

from image_builder.data import facts_of

GENERIC_NAMES = frozenset({"", "none", "generic", "any"})
"""What people write for an architecture when they want the platform's generic family."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """An archspec target: `name` (`zen2`), its `family` (`x86_64`) and the `platform` that runs it."""

    name: str
    family: str
    platform: str


class UnknownName(ValueError):
    """A platform or architecture that nobody knows, or two that do not go together. `hint` says
    what does.
    """

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def facts() -> Mapping[str, Mapping[str, str]]:
    """The data file: `families`, `platform_aliases`, `unlisted_features` and `products`."""
    return facts_of("targets")


def nearest(name: str, known: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """The known names that look most like `name`, best first; perhaps none."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower()[:200], by_lower, n=count, cutoff=0.5)
    return tuple(by_lower[match] for match in close)


def platforms() -> tuple[str, ...]:
    """The platforms that images can be built for, without their aliases."""
    return tuple(facts()["families"])


def parse_platform(text: str) -> str:
    """`linux/arm64/v8` -> `linux/arm64`. Raises `UnknownName`."""
    name = text.strip(" ").lower()
    name = facts()["platform_aliases"].get(name, name)
    if name not in facts()["families"]:
        close = nearest(name, platforms()) or platforms()
        raise UnknownName(f"unknown platform {text[:60]!r}", f"write {' or '.join(close)}")
    return name


def resolve(architecture: str | None, platform: str) -> Target:
    """The target that `architecture` names on `platform` (one of `platforms()`).

    None and `none` give the platform's generic family. Raises `UnknownName` for a name that neither
    archspec nor the product list holds, and for one of another family.
    """
    family = facts()["families"][platform]
    asked = (architecture or "").strip().lower()
    if asked in GENERIC_NAMES:
        return Target(name=family, family=family, platform=platform)
    microarchitecture = _microarchitecture(asked, family)
    own_family = microarchitecture.family.name
    if own_family != family:
        fitting = platform_of_family(own_family)
        raise UnknownName(
            f"architecture {architecture!r} is {own_family} and does not run on {platform}",
            f'write "platform": "{fitting}"' if fitting else f"choose a {family} architecture",
        )
    return Target(name=microarchitecture.name, family=family, platform=platform)


def is_known(architecture: str) -> bool:
    """Whether some platform has an architecture of this name."""
    return canonical_name(architecture) in archspec.cpu.TARGETS


def require_known(architecture: str) -> None:
    """Raise `UnknownName` for an architecture that no platform has."""
    _microarchitecture(architecture, None)


def _microarchitecture(asked: str, family: str | None) -> archspec.cpu.Microarchitecture:
    found = archspec.cpu.TARGETS.get(canonical_name(asked))
    if found is None:
        close = nearest(asked, _known_names(family)) or nearest(asked, _known_names(None))
        raise UnknownName(
            f"unknown architecture {asked!r}",
            (f"did you mean {' or '.join(close)}? " if close else "")
            + "GET /architecture/ lists the known ones",
        )
    return found


def canonical_name(architecture: str) -> str:
    """The archspec name behind a product's name; any other name comes back as it is."""
    return facts()["products"].get(architecture, architecture)


def platform_of_family(family: str) -> str | None:
    """The platform that runs a family, or None where images cannot be built for it."""
    return next(
        (platform for platform, known in facts()["families"].items() if known == family), None
    )


def known_targets() -> list[dict[str, Any]]:
    """Every target that can be asked for: `name`, `family`, `platform`, `vendor`, `aliases`,
    `parents`.
    """
    aliases: dict[str, list[str]] = {}
    for product, target in facts()["products"].items():
        aliases.setdefault(target, []).append(product)
    return [
        {
            "name": name,
            "family": cpu.family.name,
            "platform": platform_of_family(cpu.family.name),
            "vendor": cpu.vendor,
            "aliases": sorted(aliases.get(name, ())),
            "parents": [parent.name for parent in cpu.parents],
        }
        for name, cpu in sorted(archspec.cpu.TARGETS.items())
        if platform_of_family(cpu.family.name)
    ]


def _known_names(family: str | None) -> list[str]:
    def fits(target: str) -> bool:
        return family is None or (
            target in archspec.cpu.TARGETS and archspec.cpu.TARGETS[target].family.name == family
        )

    return [name for name in archspec.cpu.TARGETS if fits(name)] + [
        product for product, target in facts()["products"].items() if fits(target)
    ]
