"""Knows the CPUs that an image may be for: archspec's targets, their names and their platforms.

Names include those of products, as people use them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import archspec.cpu

from image_builder.data import facts_of

GENERIC_NAMES = frozenset({"", "none", "generic", "any"})
"""Names of an architecture that mean the platform's generic family."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Names an archspec target (`zen2`), its family (`x86_64`) and the platform that runs it."""

    name: str
    family: str
    platform: str


class UnknownName(ValueError):
    """The platform or architecture is not known, or the two do not match.

    `hint` says what to write.
    """

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def facts() -> Mapping[str, Mapping[str, str]]:
    """Return the data file about targets.

    Its keys are `families`, `platform_aliases`, `unlisted_features`, `products` and `instead`.
    """
    return facts_of("targets")


def nearest(name: str, known: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """Return the known names that look most like `name`, best first; perhaps none."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower()[:200], by_lower, n=count, cutoff=0.5)
    return tuple(by_lower[match] for match in close)


def platforms() -> tuple[str, ...]:
    """Return the platforms that images can be built for, without their aliases."""
    return tuple(facts()["families"])


def parse_platform(text: str) -> str:
    """Return the platform's own name, `linux/arm64` for `linux/arm64/v8`. Raises `UnknownName`."""
    name = text.strip(" ").lower()
    name = facts()["platform_aliases"].get(name, name)
    if name not in facts()["families"]:
        meant = _platform_meant(name)
        close = (meant,) if meant else nearest(name, platforms()) or platforms()
        raise UnknownName(f"unknown platform {text[:60]!r}", f"write {' or '.join(close)}")
    return name


def _platform_meant(name: str) -> str | None:
    """Return the platform of which a name has a part: `arm64`, `linux-amd64`, `darwin/arm64`."""
    for part in re.split("[/-]", name[:60]):
        platform = facts()["platform_aliases"].get(f"linux/{part}", f"linux/{part}")
        if platform in facts()["families"]:
            return platform
    return None


def resolve(architecture: str | None, platform: str) -> Target:
    """Return the target that `architecture` names on `platform` (one of `platforms()`).

    None and `none` give the platform's generic family. Raises `UnknownName` for a name that neither
    archspec nor the product list has, and for one of another family.
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
    """Return whether any platform has an architecture of this name."""
    return canonical_name(architecture) in archspec.cpu.TARGETS


def require_known(architecture: str) -> None:
    """Raise `UnknownName` for an architecture that no platform has."""
    _microarchitecture(architecture, None)


def says_something(architecture: str) -> bool:
    """Return whether a name is a target's, or a hint exists for it."""
    return is_known(architecture) or architecture in facts()["instead"]


def _microarchitecture(asked: str, family: str | None) -> archspec.cpu.Microarchitecture:
    found = archspec.cpu.TARGETS.get(canonical_name(asked))
    if found is None:
        raise UnknownName(f"unknown architecture {asked!r}", _hint(asked, family))
    return found


def _hint(asked: str, family: str | None) -> str:
    """Return what to write for a name that is not known: one of the platform's own family."""
    if asked in facts()["instead"]:
        return facts()["instead"][asked]
    families = [family] if family is not None else list(facts()["families"].values())
    glued = re.sub("[-_ ]", "", asked)
    for spelling in (re.sub("[- ]", "_", asked), glued, asked.partition("-")[2]):
        if is_known(spelling):
            return f"write {spelling}; GET /architecture/ lists the known ones"
    first = re.split("[-_ ]", asked, maxsplit=1)[0]
    if first in facts()["instead"]:
        return facts()["instead"][first]
    close = nearest(asked, [name for known in families for name in _known_names(known)])
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}GET /architecture/ lists the known ones"


def canonical_name(architecture: str) -> str:
    """Return the archspec name of a product, or any other name unchanged."""
    return facts()["products"].get(architecture, architecture)


def platform_of_family(family: str) -> str | None:
    """Return the platform that runs a family, or None if images cannot be built for it."""
    return next(
        (platform for platform, known in facts()["families"].items() if known == family), None
    )


def known_targets() -> list[dict[str, Any]]:
    """Return every target that a request may name.

    The fields are `name`, `family`, `platform`, `vendor`, `aliases` and `parents`.
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


@functools.cache
def _known_names(family: str) -> tuple[str, ...]:
    """Return the targets of a family and the products that are one."""
    targets = [name for name, cpu in archspec.cpu.TARGETS.items() if cpu.family.name == family]
    products = facts()["products"].items()
    return (*targets, *(product for product, target in products if target in targets))
