"""Reads Spack specs as text: are they harmless, and what do they name? Pure; needs no Spack.

`spec_syntax` reads them. Spack decides later whether a package has such a version or variant. This
module makes sure that a text is one spec and can do no harm, and reads from it what the planner
compares.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping

import archspec.cpu

from image_builder.spack.spec_syntax import (
    FLAGS,
    Node,
    Setting,
    SpecError,
    character_problem,
    in_plain_characters,
    read,
)

__all__ = ["FLAGS", "Node", "Setting", "SpecError"]
MAX_SPEC = 2000
_NEWEST, _OLDEST = (1, 2), (0, 23)
"""The two ways to read a spec, where the release is not known."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
_REFERENCE = re.compile(r"\$[%^]?[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_FOREIGN = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)\s*(?P<sign>==?)\s*(?P<version>[A-Za-z0-9_.*-]*)"
)
_FLAG = re.compile(
    r"-(?:O[0-3sgz]?|Ofast|g[0-9]?|m[A-Za-z0-9=._,+-]+|f(?![a-z-]*plugin)[A-Za-z0-9=-]+|"
    r"std=[a-z0-9+]+|D[A-Za-z0-9_]+(?:=[A-Za-z0-9_.]*)?|l[A-Za-z0-9_+.-]+|"
    r"W(?![alp]\Z)[a-z][a-z0-9=+-]*|pthread|pipe|static|traceback|w)\Z"
)
_REFUSED_KEYS = {
    "dev_path": "The source comes from the package's recipe: put a recipe into the catalogue.",
    "patches": "Put the patch into the package's recipe in the catalogue.",
}


def problem(
    text: str, *, named: bool = True, release: tuple[int, ...] | None = None
) -> tuple[str, str] | None:
    """Return what is wrong with a spec, and what to write; None when its shape is fine.

    A spec that is not `named` may begin with a version, variant or compiler (`@1.12`, `+mpi`,
    `%gcc@12`). If the release is not known, it is enough that one release reads the text.
    """
    if not text.strip() or len(text) > MAX_SPEC:
        return (
            f"a spec is {'empty' if not text.strip() else f'longer than {MAX_SPEC} characters'}",
            "Write a package such as hdf5@1.14+mpi.",
        )
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    if odd := character_problem(text):
        plain = in_plain_characters(text)
        is_plain = plain != text and plain.isascii()
        meant = problem(plain, named=named, release=release) if is_plain else None
        return f"{shown} {odd.problem}", meant[1] if meant else odd.hint
    try:
        if text.startswith("$"):
            _check_reference(text)
        else:
            _check(text, named, release)
    except SpecError as error:
        return f"{shown} {error.problem}", error.hint
    return None


def parse(text: str, release: tuple[int, ...] | None = None) -> tuple[Node, ...]:
    """Return the nodes that a spec names, as `release` of Spack reads it, its root first.

    The root's name is empty in a bare constraint. If the release is not known, the newest one that
    reads the text counts. Raises `SpecError`.
    """
    if len(text) > MAX_SPEC:
        raise SpecError(f"is longer than {MAX_SPEC} characters", "Write a shorter spec.")
    if odd := character_problem(text):
        raise odd
    if release is not None:
        return read(text, release)
    try:
        return read(text, _NEWEST)
    except SpecError as error:
        try:
            return read(text, _OLDEST)
        except SpecError:
            raise error from None


def nodes(text: str, release: tuple[int, ...] | None = None) -> tuple[Node, ...]:
    """Return the nodes that a spec names, or one node without a name for a text that is no spec."""
    try:
        return parse(text, release)
    except SpecError:
        return (Node(),)


def constrained(specs: Iterable[tuple[Node, ...]]) -> tuple[Node, ...]:
    """Return the nodes of one spec that others constrain, as the rows of a matrix do."""
    root = Node()
    others: list[Node] = []
    for first, *rest in specs:
        root = dataclasses.replace(
            root,
            name=root.name or first.name,
            version=",".join(filter(None, [root.version, first.version])),
            settings=root.settings + first.settings,
        )
        others += rest
    return (root, *others)


def flags_of(node: Node) -> list[tuple[str, str]]:
    """Return every compiler flag that a node sets, with its key: `("cflags", "-O3")`."""
    return [
        (setting.key, flag)
        for setting in node.settings
        if setting.key in FLAGS
        for flag in re.split(r"[\s,]+", setting.value.strip())
        if setting.value
    ]


def _check_reference(text: str) -> None:
    if _REFERENCE.match(text):
        return
    name, *rest = re.sub(r"[{}]", "", text).split(maxsplit=1)
    if rest:
        raise SpecError(
            "is more than a definition's name", f"Write matrix: [[{name}], ['{rest[0]}']]."
        )
    raise SpecError("names no definition", f"Write {name if _REFERENCE.match(name) else '$name'}.")


def _check(text: str, named: bool, release: tuple[int, ...] | None) -> None:
    match = _FOREIGN.match(text) if named else None
    if match:
        tool = "pip" if match["sign"] == "==" else "conda"
        version = match["version"].rstrip(".*") or "1.14"
        raise SpecError(f"is written as for {tool}", f"Write {match['name']}@{version}.")
    parsed = parse(text, release)
    if named and not _NAME.match(parsed[0].name):
        raise SpecError(
            "does not begin with a package's name", "Write a package such as hdf5@1.14+mpi."
        )
    for node in parsed:
        _check_node(node)


def _check_node(node: Node) -> None:
    for setting in node.settings:
        if setting.key in _REFUSED_KEYS:
            raise SpecError(f"sets {setting.key}", _REFUSED_KEYS[setting.key])
    for key, flag in flags_of(node):
        if not _FLAG.match(flag):
            raise SpecError(
                f"sets {key} to {flag[:60]!r}, which is no plain flag",
                "Write plain flags, such as cflags=-O3 or cflags='-O3 -g'.",
            )


def disjoint_versions(one: str, other: str) -> bool:
    """Return whether two plain versions exclude each other: `3` and `4` do, `4` and `4.1` do not.

    Of ranges the answer is always no.
    """
    one, other = one.lstrip("="), other.lstrip("=")
    if (
        not one
        or not other
        or not all(re.fullmatch(r"\d+(?:\.\d+)*", version) for version in (one, other))
    ):
        return False
    return any(a != b for a, b in zip(one.split("."), other.split("."), strict=False))


def targets_of(parsed: Iterable[Node]) -> list[str]:
    """Return the targets that a spec's nodes ask for, as they are written (`zen2`, `x86_64_v2:`)."""
    asked: list[str] = []
    for node in parsed:
        asked += node.values_of("target")
        asked += [
            value.split("-", 2)[2] for value in node.values_of("arch") if value.count("-") >= 2
        ]
    return asked


def target_allows(asked: str, target: str) -> bool:
    """Return whether `asked` (a name, a list, a range such as `x86_64_v2:`) allows `target`."""
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


NOT_VARIANTS = FLAGS | {"arch", "target", "os", "platform", "operating_system", "namespace"}
_INFINITE = ("stable", "trunk", "head", "master", "main", "develop")
_BEFORE = ("alpha", "beta", "rc")
_Key = tuple[tuple[int, int, str], ...]


def unmet(wanted: Node, version: str, parameters: Mapping[str, object]) -> str:
    """Return what of `wanted` a node of that package does not have; empty when it has all.

    `version` and `parameters` are the node's.
    """
    if wanted.version and not version_satisfies(version, wanted.version):
        return f"its version is {version}"
    missing = [
        _written(name, value)
        for name, value in wanted.variants.items()
        if name not in NOT_VARIANTS and not _has(parameters.get(name), value)
    ]
    return "without " + " ".join(missing) if missing else ""


def version_satisfies(version: str, wanted: str) -> bool:
    """Return whether a concrete `version` is in `wanted`, the text behind a spec's `@`.

    `4.1` takes every 4.1.x, `=4.1` exactly 4.1, `4:5` everything from 4 to the last 5.x; commas
    join alternatives.
    """
    return any(_in_range(version, part) for part in wanted.split(","))


def values(parameter: object) -> frozenset[str]:
    """Return the values of a node's parameter, whether it has none, one or several."""
    if parameter is None or isinstance(parameter, bool):
        return frozenset()
    if isinstance(parameter, Iterable) and not isinstance(parameter, str):
        return frozenset(map(str, parameter))
    return frozenset({str(parameter)})


def _in_range(version: str, wanted: str) -> bool:
    """Return whether a version is in one range of `wanted`.

    A lockfile's `git.main=1.2` is both the branch `main` and the version 1.2.
    """
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
    """Return what versions are ordered by.

    Branch names come after every number, pre-releases before their release.
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


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return what versions are sorted by, as Spack orders them."""
    return _key(version)


def _begins_with(key: _Key, prefix: _Key) -> bool:
    return key[: len(prefix) - 1] == prefix[:-1]


def _has(found: object, wanted: str) -> bool:
    if wanted in ("true", "false"):
        return found is (wanted == "true")
    return found is not None if wanted == "*" else frozenset(wanted.split(",")) <= values(found)


def _written(name: str, value: str) -> str:
    return {"true": f"+{name}", "false": f"~{name}"}.get(value, f"{name}={value}")
