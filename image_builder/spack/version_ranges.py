"""Compares ranges of versions, as they follow the `@` of a spec. Pure.

Ranges are such as `4`, `:11.8`, `4.1:4.3,5` and `=4.1.6`.
"""

from __future__ import annotations

from collections.abc import Iterable

from image_builder.spack.spec import version_satisfies


def overlap(one: str, other: str) -> bool:
    """Return whether any version can be in both ranges; an empty range is any version.

    `4` is every 4.x, so it overlaps `4.1:` but not `5:`.
    """
    return any(
        _overlap(*_bounds(first), *_bounds(second))
        for first in one.split(",")
        for second in other.split(",")
    )


def matching(versions: Iterable[str], wanted: str) -> tuple[str, ...]:
    """Return those of `versions` that are in the range `wanted`, in their order."""
    return tuple(
        version for version in versions if not wanted or version_satisfies(version, wanted)
    )


def lowest(ranges: str) -> str:
    """Return where a range begins, or an empty text where it is open below or has gaps."""
    return "" if "," in ranges else _bounds(ranges)[0]


def highest(ranges: str) -> str:
    """Return where a range ends, or an empty text where it is open above or has gaps."""
    return "" if "," in ranges else _bounds(ranges)[1]


def _bounds(part: str) -> tuple[str, str]:
    part = part.strip().removeprefix("=")
    if ":" not in part:
        return part, part
    low, _, high = part.partition(":")
    return low, high


def _overlap(low: str, high: str, other_low: str, other_high: str) -> bool:
    return _is_reached(low, other_high) and _is_reached(other_low, high)


def _is_reached(low: str, high: str) -> bool:
    """Return whether a range that ends with `high` can contain a version from `low` on."""
    return not low or not high or version_satisfies(low, f":{high}")
