"""Decides what of the description's `view` is kept, and which specs one view cannot hold. Pure."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from image_builder.errors import ErrorCode
from image_builder.sources.description import Description
from image_builder.sources.problems import Problem, raise_all
from image_builder.sources.spec_lists import Root
from image_builder.spack import spec
from image_builder.spack.compiler_names import package_of

VIEW = "/opt/view"
_HIDING = ("projections", "select", "exclude", "group")
"""Settings of a view that leave programs out of its `bin`."""


def view_of(description: Description) -> tuple[Any, list[str]]:
    """Return the environment's `view`, and a warning for each part of the description's left out.

    The default view is at `VIEW` and holds every program: `PATH` names its `bin`. Only where specs
    are concretized separately may there be none.
    """
    body = description.spack or {}
    view = body.get("view", True)
    if isinstance(view, dict):
        others = {name: fields for name, fields in view.items() if name != "default"}
        default, dropped = _default(view.get("default") or {})
        warnings = [
            f"{_line(description, 'view', 'default', key)}: {key} of the default view is not used: "
            f"every program is in {VIEW}/bin."
            for key in dropped
        ]
        if not _is_ours((view.get("default") or {}).get("root", VIEW)):
            line = _line(description, "view", "default", "root")
            warnings.append(f"{line}: the view is at {VIEW}, whatever root says.")
        return {**others, "default": default}, warnings
    if view is False and not is_unified(body):
        warning = (
            f"{_line(description, 'view')}: there is no view: programs are found by spack load."
        )
        return False, [warning]
    if view not in (True, None) and not _is_ours(view):
        return VIEW, [f"{description.file}: the view is at {VIEW}, whatever view says."]
    return VIEW, []


def is_unified(body: Mapping[str, Any]) -> bool:
    """Return whether all root specs are concretized together."""
    return (body.get("concretizer") or {}).get("unify", True) in (True, None)


def refuse_twice(description: Description, roots: Iterable[Root]) -> None:
    """Raise `BadDescription` (`CONFLICT`) for root specs of one package that exclude each other.

    Concretized together they have no solution; apart, they collide in the view, and Spack says so
    only when everything is built (spack/spack #31787).
    """
    body = description.spack or {}
    if not is_unified(body) and view_of(description)[0] is False:
        return
    raise_all(_twice(description, roots), description.file, ErrorCode.CONFLICT)


def _twice(description: Description, roots: Iterable[Root]) -> Iterator[Problem]:
    named: dict[str, list[Root]] = {}
    for root in roots:
        named.setdefault(root.name, []).append(root)
    apart = not is_unified(description.spack or {})
    for name, same in named.items():
        clash = next(
            (pair for pair in itertools.combinations(same[:50], 2) if _exclude(*pair)), None
        )
        if clash is None:
            continue
        one, other = clash
        what = "one view" if apart else "an environment that is concretized together"
        yield Problem(
            description.line("spack", *other.parts[0].path) or 1,
            f"names {name} twice, as {one.text!r} and {other.text!r}, and {what} cannot hold both",
            "Keep one of them, or write view: false"
            + (" below spack." if apart else " and concretizer: unify: false below spack."),
        )


def _exclude(one: Root, other: Root) -> bool:
    """Return whether no package can be what both root specs ask for."""
    root, second = one.nodes[0], other.nodes[0]
    switches = {setting.key: setting.value for setting in root.settings if setting.is_switch}
    return (
        spec.disjoint_versions(root.version, second.version)
        or any(
            setting.is_switch and switches.get(setting.key, setting.value) != setting.value
            for setting in second.settings
        )
        or _compilers_exclude(one, other)
    )


def _compilers_exclude(one: Root, other: Root) -> bool:
    """Return whether the compilers of the two differ; only plain ones (`%gcc@12`) are compared."""
    first, second = (
        [node for node in root.nodes[1:2] if node.sigil == "%" and not node.virtuals]
        for root in (one, other)
    )
    if not first or not second:
        return False
    return package_of(first[0].name) != package_of(second[0].name) or spec.disjoint_versions(
        first[0].version, second[0].version
    )


def _is_ours(place: Any) -> bool:
    """Return whether this is `VIEW`, in any spelling of the path."""
    return (
        isinstance(place, str)
        and place.startswith("/")
        and posixpath.normpath(f"/{place.lstrip('/')}") == VIEW
    )


def _default(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the default view, and which of its settings are not used."""
    dropped = [key for key in _HIDING if fields.get(key)]
    dropped += ["link"] if fields.get("link") == "roots" else []
    kept = {key: value for key, value in fields.items() if key not in (*_HIDING, *dropped)}
    return {**kept, "root": VIEW}, dropped


def _line(description: Description, *path: str) -> str:
    return f"{description.file}, line {description.line('spack', *path)}"
