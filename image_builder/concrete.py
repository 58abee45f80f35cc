"""Whether something concrete is what a spec asks for: its version, its variants. Pure; no Spack is
needed.

`specs` reads what people write; here that is held against the nodes of a lock. Compilers,
architectures, flags and dependencies of a spec are the concretizer's business and not looked at.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from image_builder import specs

_NOT_VARIANTS = frozenset(
    {
        "arch",
        "target",
        "os",
        "platform",
        "operating_system",
        "cflags",
        "cxxflags",
        "cppflags",
        "fflags",
        "ldflags",
        "ldlibs",
    }
)
_INFINITE = ("stable", "trunk", "head", "master", "main", "develop")
_BEFORE = ("alpha", "beta", "rc")
_Key = tuple[tuple[int, int, str], ...]


def unmet(wanted: specs.Node, version: str, parameters: Mapping[str, object]) -> str:
    """What of `wanted` a node of that package, with `version` and `parameters`, does not have; ``
    when nothing.
    """
    if wanted.version and not version_satisfies(version, wanted.version):
        return f"its version is {version}"
    missing = [
        _written(name, value)
        for name, value in wanted.variants.items()
        if name.rstrip(":") not in _NOT_VARIANTS
        and not _has(parameters.get(name.rstrip(":")), value)
    ]
    return "without " + " ".join(missing) if missing else ""


def version_satisfies(version: str, wanted: str) -> bool:
    """Whether a concrete `version` lies in `wanted`, which is what follows a spec's `@`.

    `4.1` takes every 4.1.x, `=4.1` exactly 4.1, `4:5` everything from 4 to the last 5.x; commas
    join alternatives.
    """
    return any(_in_range(version, part) for part in wanted.split(","))


def values(parameter: object) -> frozenset[str]:
    """The values of a node's parameter, whether it has none, one or several."""
    if parameter is None or isinstance(parameter, bool):
        return frozenset()
    if isinstance(parameter, Iterable) and not isinstance(parameter, str):
        return frozenset(map(str, parameter))
    return frozenset({str(parameter)})


def _in_range(version: str, wanted: str) -> bool:
    """One alternative. A lock's `git.main=1.2` is the branch `main` that stands for 1.2."""
    reference, _, standing_for = version.partition("=")
    names = {version, reference, reference.removeprefix("git."), standing_for or reference}
    if wanted.removeprefix("=") in names:
        return True
    if "=" in wanted:
        return False
    key = _key(standing_for or reference)
    if ":" not in wanted:
        return _begins_with(key, _key(wanted))
    low, _, high = wanted.partition(":")
    if low and key < _key(low):
        return False
    return not high or key <= _key(high) or _begins_with(key, _key(high))


@functools.lru_cache(maxsize=4096)
def _key(version: str) -> _Key:
    """What versions are ordered by: branch names after every number, pre-releases before their
    release.
    """
    parts: list[tuple[int, int, str]] = []
    for part in re.findall(r"\d+|[A-Za-z]+", version):
        if part.isdigit():
            parts.append((2, int(part), ""))
        elif part in _INFINITE:
            parts.append((3, _INFINITE.index(part), ""))
        elif part in _BEFORE and parts:
            parts.append((-1, _BEFORE.index(part), ""))
        else:
            parts.append((1, 0, part))
    return (*parts, (0, 0, ""))  # the end: after a pre-release, before anything longer


def _begins_with(key: _Key, prefix: _Key) -> bool:
    return key[: len(prefix) - 1] == prefix[:-1]


def _has(found: object, wanted: str) -> bool:
    if wanted in ("true", "false"):
        return found is (wanted == "true")
    return (
        found is not None
        if wanted == "*"
        else frozenset(wanted.strip("\"'").split(",")) <= values(found)
    )


def _written(name: str, value: str) -> str:
    return {"true": f"+{name}", "false": f"~{name}"}.get(value, f"{name}={value}")
