"""Spack specs as text: are they harmless, and what do they name? Pure; no Spack is needed.

This is not Spack's parser: Spack decides later whether a spec means anything. Here it is made sure
that a spec can be nothing else than one, and what the planner compares is read from it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping

import archspec.cpu

MAX_SPEC = 2000
_ALLOWED = re.compile(r"[A-Za-z0-9_@.:=,+~^%*/\[\]$ -]*\Z")
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*"
_NODE_START = re.compile(rf"(?:[\^%]{{1,2}}(?:\[[^\]]*\])?\s*(?:[a-z,]+=(?={_NAME}))?)?")
_FLAGS = frozenset({"cflags", "cxxflags", "fflags", "cppflags", "ldflags", "ldlibs"})
_FLAG_VALUE = re.compile(
    r"-(?:O[0-3sg]?|Ofast|g[0-9]?|m[A-Za-z0-9=._-]+|f(?!plugin)[A-Za-z0-9=-]+|std=[a-z0-9+]+|"
    r"D[A-Za-z0-9_]+(?:=[A-Za-z0-9_.]*)?|l[A-Za-z0-9_+.-]+|W(?:all|extra|no-[a-z0-9=-]+))\Z"
)
_REFUSED_KEYS = {
    "dev_path": "The source comes from the package's recipe: put a recipe into the catalogue.",
    "patches": "Put the patch into the package's recipe in the catalogue.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One node that a spec names. `sigil` is `` for the root, `^` for a dependency, `%` for a
    direct one.
    """

    sigil: str
    name: str
    version: str
    words: tuple[str, ...]

    @property
    def variants(self) -> dict[str, str]:
        """`key=value` settings; `+x` and `~x` come as `x` with `true` and `false`."""
        settings: dict[str, str] = {}
        for word in self.words:
            if word[0] in "+~-":
                settings[word.lstrip("+~-")] = "true" if word[0] == "+" else "false"
            elif "=" in word:
                key, _, value = word.partition("=")
                settings[key] = value.lstrip("=")
        return settings


def problem(text: str, *, named: bool = True) -> tuple[str, str] | None:
    """What is wrong with a spec, and what to do; None when its shape is fine.

    A spec that is not `named` may begin with a version, variant or compiler (`@1.12`, `+mpi`,
    `%gcc@12`).
    """
    if not text.strip() or len(text) > MAX_SPEC:
        return (
            f"a spec is {'empty' if not text.strip() else 'far too long'}",
            "Write a package such as hdf5@1.14+mpi.",
        )
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    if not _ALLOWED.match(text):
        return (
            f"{shown} holds characters that no spec needs",
            "Write name@version, +variant, key=value, ^dependency.",
        )
    if text.startswith("$"):
        return (
            None
            if re.fullmatch(r"\$[%^]?[A-Za-z_]\w*", text)
            else (f"{shown} names no definition", "Write $name.")
        )
    return _parts_problem(text, shown, named)


def _parts_problem(text: str, shown: str, named: bool) -> tuple[str, str] | None:
    if re.match(rf"{_NAME}\s*==", text):
        name, _, version = text.partition("==")
        return f"{shown} is written as for pip", f"Write {name.strip()}@{version.strip()}."
    found = nodes(text)
    root = found[0]
    if named and not re.fullmatch(_NAME, root.name):
        return (
            f"{shown} does not begin with a package's name",
            "Write a package such as hdf5@1.14+mpi.",
        )
    for node in found:
        if node.name.endswith((".yaml", ".json")) or any(
            word.startswith("/") for word in node.words
        ):
            return (
                f"{shown} names a file or an installed package",
                "Write the package's name and version.",
            )
        if "/" in node.name:
            return f"{shown} holds a path", "Write the package's name and version."
        for key, value in node.variants.items():
            if key in _REFUSED_KEYS:
                return f"{shown} sets {key}", _REFUSED_KEYS[key]
            if key in _FLAGS and not all(_FLAG_VALUE.match(flag) for flag in value.split(",")):
                return (
                    f"{shown} sets {key} to something else than a plain flag",
                    "Write one flag, such as cflags=-O3.",
                )
    return None


def nodes(text: str) -> tuple[Node, ...]:
    """The nodes that a spec names, its root first; the root's name is empty in a bare constraint."""
    pieces = [piece for piece in re.split(r"(?=(?<![\^%])[\^%])", text) if piece.strip()]
    found = [_node(piece.strip()) for piece in pieces]
    if not found or found[0].sigil:
        found.insert(0, Node(sigil="", name="", version="", words=()))
    return tuple(found)


def _node(piece: str) -> Node:
    start = _NODE_START.match(piece)
    prefix = start.group() if start else ""
    rest = piece[len(prefix) :]
    name_match = re.match(rf"{_NAME}(?![A-Za-z0-9_-]*=)", rest)
    name = name_match.group() if name_match else ""
    words = _words(rest[len(name) :])
    versions = [word[1:] for word in words if word.startswith("@")]
    return Node(
        sigil=prefix[:1],
        name=name.rsplit(".", 1)[-1] if not name.endswith((".yaml", ".json")) else name,
        version=",".join(versions),
        words=tuple(word for word in words if not word.startswith("@")),
    )


def _words(text: str) -> list[str]:
    """`@1.2+mpi~x y=z` -> `@1.2`, `+mpi`, `~x`, `y=z`."""
    words: list[str] = []
    for part in text.split():
        if "=" in part and not part.startswith(("@", "+", "~")):
            words.append(part)
            continue
        head, key = part, ""
        words += [word for word in re.split(r"(?=[+~@])", head) if word] + ([key] if key else [])
    return words


def disjoint_versions(one: str, other: str) -> bool:
    """Whether two plain versions exclude each other: `4` and `4.1` do not, `3` and `4` do; ranges
    are not judged.
    """
    one, other = one.lstrip("="), other.lstrip("=")
    if (
        not one
        or not other
        or not all(re.fullmatch(r"\d+(?:\.\d+)*", version) for version in (one, other))
    ):
        return False
    return any(a != b for a, b in zip(one.split("."), other.split("."), strict=False))


def targets_of(text: str) -> list[str]:
    """The targets that a spec asks for, as they are written (`zen2`, `x86_64_v2:`)."""
    asked = []
    for node in nodes(text):
        settings = node.variants
        asked += [settings["target"]] if "target" in settings else []
        asked += (
            [settings["arch"].split("-", 2)[2]] if settings.get("arch", "").count("-") >= 2 else []
        )
    return asked


def target_allows(asked: str, target: str) -> bool:
    """Whether the target that was asked for (a name, a list, a range such as `x86_64_v2:`) lets
    `target` be.
    """
    return any(_range_allows(part, target) for part in asked.split(","))


def _range_allows(asked: str, target: str) -> bool:
    if ":" not in asked:
        return asked == target
    low, _, high = asked.partition(":")
    return (not low or _is_ancestor_or_self(low, target)) and (
        not high or _is_ancestor_or_self(target, high)
    )


def _is_ancestor_or_self(older: str, newer: str) -> bool:
    if older == newer:
        return True
    cpu = archspec.cpu.TARGETS.get(newer)
    return cpu is not None and older in {ancestor.name for ancestor in cpu.ancestors}


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


def unmet(wanted: Node, version: str, parameters: Mapping[str, object]) -> str:
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
