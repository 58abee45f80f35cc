"""Checks the `spack` section of a description: what a step may have of a Spack environment. Pure.

Its forms are those that Spack's own schema takes, less what would run code in the build or change
where packages come from.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from image_builder.errors import BadDescription
from image_builder.sources import package_settings
from image_builder.sources.checking import Check, kind
from image_builder.sources.safe_yaml import Document, Path
from image_builder.sources.spec_lists import MAX_EXCLUDED, MAX_ROOTS, count_roots
from image_builder.spack import spec as spack_spec

KEYS = ("specs", "packages", "concretizer", "view", "definitions")
CONCRETIZER_KEYS = (
    "unify",
    "reuse",
    "targets",
    "duplicates",
    "timeout",
    "error_on_timeout",
    "static_analysis",
    "compiler_mixing",
    "externals",
    "force",
    "splice",
    "os_compatible",
    "concretization_cache",
)
UNNAMED_GROUP = "default"
"""The group of the specs that are in none, as Spack 1.2 names it."""
GROUP_KEYS = ("group", "needs", "explicit", "specs", "matrix", "exclude")
VIEW_KEYS = (
    "root",
    "link",
    "link_type",
    "link_dirs",
    "group",
    "select",
    "exclude",
    "projections",
)
WHY_REFUSED = {
    "repos": "Packages come from the site's catalogue: ask its operator to add a recipe.",
    "mirrors": "Where sources come from is the site's choice: leave it out.",
    "include": "Write what the other file holds here.",
    "include_concrete": "Write the specs here: they are concretized for the machine.",
    "develop": "Packages are built from their recipes' sources: name a version, or install from post_inst.sh.",
    "config": "How Spack works is the site's choice: leave it out.",
    "bootstrap": "How Spack works is the site's choice: leave it out.",
    "compilers": "Install a compiler under apt (gcc-12, g++-12, gfortran-12) and name it with "
    "packages: all: compiler: [gcc@12].",
    "toolchains": "Name a compiler with packages: all: compiler: [gcc@12].",
    "modules": "An image has a view in place of module files: leave it out.",
    "env": "Write what stands below it directly below spack:.",
    "env_vars": "Set variables in the step's own scripts.",
    "cdash": "Leave it out.",
    "gitlab-ci": "Leave it out.",
    "ci": "Leave it out.",
    "container": "Leave it out.",
    "upstreams": "Leave it out.",
}
_WHY_GROUP_KEY_REFUSED = {"override": "Write what all groups may share under packages."}
_CONCRETIZATION = {
    "together": "true",
    "separately": "false",
    "together_where_possible": "when_possible",
}
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+:\Z")
_DEFINITION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}\Z")
_VIEW_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_VIEW_ROOT = re.compile(r"/opt/[A-Za-z0-9][A-Za-z0-9._+/-]*\Z")
_PROJECTION = re.compile(r"[A-Za-z0-9{}_.:,^=+@-][A-Za-z0-9{}_.:,^=+@/-]*\Z")
_TAKEN_ROOTS = ("/opt/view", "/opt/cic", "/opt/spack")


def with_single_colons(document: Document, file: str) -> Document:
    """Return the document with `key:` for each `key::` below `spack`.

    With two colons Spack ignores the settings of other scopes, and here are none. Raises
    `BadDescription` if a key occurs in both forms.
    """
    fields = document.value
    if not isinstance(fields, dict) or "spack" not in fields:
        return document
    body = _one_colon(fields["spack"], ("spack",), document, file)
    lines = {
        (*path[:1], *(map(_plain_key, path[1:]) if path[:1] == ("spack",) else path[1:])): line
        for path, line in document.lines.items()
    }
    return dataclasses.replace(document, value={**fields, "spack": body}, lines=lines)


def checked(check: Check, value: Any) -> Mapping[str, Any] | None:
    """Return the section, and report what is wrong with it to `check`."""
    if value is None:
        return None
    fields = check.mapping(("spack",), value)
    _check_keys(check, fields)
    before = len(check.problems)
    _check_definitions(check, fields.get("definitions"))
    _check_spec_list(check, ("spack", "specs"), fields.get("specs"))
    _check_needs(check, fields.get("specs"))
    if len(check.problems) == before:
        _check_references(check, fields)
    package_settings.check_packages(check, fields.get("packages"))
    _check_concretizer(check, fields.get("concretizer"))
    _check_view(check, fields.get("view"), _groups_in(fields.get("specs")))
    return fields


def _plain_key(key: str | int) -> str | int:
    return key[:-1] if isinstance(key, str) and _PLAIN_KEY.match(key) else key


def _one_colon(value: Any, path: Path, document: Document, file: str) -> Any:
    if isinstance(value, list):
        return [_one_colon(one, (*path, at), document, file) for at, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    fields: dict[Any, Any] = {}
    for key, one in value.items():
        plain = _plain_key(key)
        if plain in fields:
            raise BadDescription(
                f"{str(plain)[:60]!r} stands twice in the same mapping",
                file=file,
                line=document.line((*path, key)),
                hint="Keep one of the two.",
            )
        fields[plain] = _one_colon(one, (*path, key), document, file)
    return fields


def _check_keys(check: Check, fields: Mapping[str, Any]) -> None:
    why = dict(WHY_REFUSED)
    wanted = _CONCRETIZATION.get(str(fields.get("concretization")), "true")
    why["concretization"] = f"Write concretizer: unify: {wanted}."
    check.known(("spack",), fields, KEYS, why)


def _check_spec_list(check: Check, path: Path, value: Any) -> None:
    """Check `specs` or a definition: specs, `$names`, and matrices of them."""
    for at, entry in enumerate(check.list(path, value) if value is not None else ()):
        here = (*path, at)
        if entry is None:
            continue
        if not isinstance(entry, dict):
            check.spec(here, entry, named=path[1] == "specs")
        elif "group" in entry and path == ("spack", "specs"):
            _check_group(check, here, entry)
        elif not set(GROUP_KEYS) & set(entry):
            check.wrong(here, *_mapping_problem(entry, named=path[1] == "specs"))
        else:
            _check_matrix(check, here, entry)


def _mapping_problem(entry: Mapping[str, Any], *, named: bool) -> tuple[str, str]:
    """Return what is wrong with a mapping in place of a spec, which YAML often makes of a colon."""
    (key, rest), *others = entry.items() or [("", None)]
    text = f"{key[:60]}:" + ("" if rest is None else f" {str(rest)[:60]}")
    if others or isinstance(rest, dict | list) or spack_spec.problem(text, named=named):
        return "is a mapping, not a spec", "Write a text such as hdf5@1.14+mpi."
    return (
        f"is a mapping: the text {key[:60]!r} has a colon with a blank behind it",
        f"Put it into quotes: '{text}'.",
    )


def _check_group(check: Check, path: Path, entry: Mapping[str, Any]) -> None:
    """Check a group of specs (Spack 1.2), which is concretized after the groups that it needs."""
    check.known(path, entry, GROUP_KEYS, _WHY_GROUP_KEY_REFUSED)
    for key, name in [("group", entry["group"]), *(("needs", name) for name in _needed(entry))]:
        if not isinstance(name, str) or not _GROUP_NAME.match(name):
            check.wrong(
                (*path, key), "is not a group's name", "Write letters, digits, '_' and '-'."
            )
    check.flag((*path, "explicit"), entry.get("explicit"))
    _check_spec_list(check, (*path, "specs"), entry.get("specs"))
    if "matrix" in entry or "exclude" in entry:
        _check_rows(check, path, entry)


def _check_needs(check: Check, value: Any) -> None:
    """Check that the groups that a group needs exist."""
    names = _groups_in(value)
    for at, entry in enumerate(value if isinstance(value, list) else ()):
        missing = next((name for name in _needed(entry) if name not in names), None)
        if missing is not None:
            check.wrong(
                ("spack", "specs", at, "needs"),
                f"names {str(missing)[:60]!r}, which is no group here",
                "Write the name of another group of this list.",
            )


def _groups_in(value: Any) -> list[Any]:
    """Return the names of the groups in `specs`."""
    entries = value if isinstance(value, list) else ()
    return [entry["group"] for entry in entries if isinstance(entry, dict) and "group" in entry]


def _needed(entry: Any) -> list[Any]:
    """Return the groups that an entry of `specs` needs."""
    needs = entry.get("needs") if isinstance(entry, dict) else None
    return needs if isinstance(needs, list) else [needs] if needs is not None else []


def _check_matrix(check: Check, path: Path, entry: Mapping[str, Any]) -> None:
    check.known(path, entry, ("matrix", "exclude"), {})
    _check_rows(check, path, entry)


def _check_rows(check: Check, path: Path, entry: Mapping[str, Any]) -> None:
    rows = check.list((*path, "matrix"), entry.get("matrix"))
    for at, row in enumerate(rows):
        check.spec_list((*path, "matrix", at), row, named=False)
        if row == []:
            check.wrong((*path, "matrix", at), "is empty", "Write a spec, or leave the row out.")
    if rows == [] and isinstance(entry.get("matrix"), list):
        check.wrong((*path, "matrix"), "is empty", "Write at least one row of specs.")
    excluded = entry.get("exclude", [])
    check.spec_list((*path, "exclude"), excluded, named=False)
    if isinstance(excluded, list) and len(excluded) > MAX_EXCLUDED:
        check.wrong(
            (*path, "exclude"), f"has more than {MAX_EXCLUDED} entries", "Write smaller matrices."
        )


def _check_definitions(check: Check, value: Any) -> None:
    path: Path = ("spack", "definitions")
    for at, entry in enumerate(check.list(path, value) if value is not None else ()):
        for name, entries in check.mapping((*path, at), entry).items():
            here = (*path, at, name)
            if name == "when":
                check.wrong(here, "is not allowed here", "It would run code: name the specs.")
            elif not _DEFINITION.match(name):
                check.wrong(here, "is not a name", "Write letters, digits, '-', '_' and '.'.")
            else:
                _check_spec_list(check, here, entries)


def _check_references(check: Check, fields: Mapping[str, Any]) -> None:
    """Check that every `$name` is defined before its use, and that all are not too many specs."""
    sizes, unknown = count_roots(fields)
    for path, name, known in unknown:
        hint = f"Defined before are {', '.join(known[:12])}." if known else "Define it first."
        check.wrong(("spack", *path), f"names {name[:60]}, which is not defined before", hint)
    for name, size in sizes.items():
        if size.is_too_large:
            check.wrong(
                ("spack", "definitions" if name else "specs"),
                f"expands to more than {MAX_ROOTS} specs, or to very long ones",
                f"Keep only what the step needs{f' in {name[:60]}' if name else ''}.",
            )


def _check_concretizer(check: Check, value: Any) -> None:
    path: Path = ("spack", "concretizer")
    fields = check.mapping(path, value)
    unify = _CONCRETIZATION.get(str(fields.get("concretization")), "true")
    check.known(path, fields, CONCRETIZER_KEYS, {"concretization": f"Write unify: {unify}."})
    if fields.get("unify") is not None:
        check.choice((*path, "unify"), fields["unify"], (True, False, "when_possible"))
    for key in ("error_on_timeout", "static_analysis"):
        check.flag((*path, key), fields.get(key))
    if not isinstance(fields.get("timeout", 0), int) or fields.get("timeout", 0) < 0:
        check.wrong(
            (*path, "timeout"), "is not a number of seconds", "Write a number, such as 600."
        )
    externals = check.mapping((*path, "externals"), fields.get("externals"))
    check.known((*path, "externals"), externals, ("completion",), {})
    if "completion" in externals:
        completions = ("architecture_only", "default_variants")
        check.choice((*path, "externals", "completion"), externals["completion"], completions)
    duplicates = check.mapping((*path, "duplicates"), fields.get("duplicates"))
    check.known((*path, "duplicates"), duplicates, ("strategy", "max_dupes"), {})
    if "strategy" in duplicates:
        check.choice(
            (*path, "duplicates", "strategy"), duplicates["strategy"], ("none", "minimal", "full")
        )


def _check_view(check: Check, value: Any, groups: list[Any]) -> None:
    path: Path = ("spack", "view")
    if value is None or isinstance(value, bool | str):
        return
    if not isinstance(value, dict):
        check.wrong(path, "is not known", "Leave it out: the view is at /opt/view.")
        return
    roots: dict[str, str] = {}
    for name, fields in value.items():
        here = (*path, name)
        if not _VIEW_NAME.match(name):
            check.wrong(here, "is not a view's name", "Write letters, digits, '-' and '_'.")
        fields = check.mapping(here, fields)
        _check_view_fields(check, here, fields, groups)
        if name != "default":
            _check_view_root(check, here, fields.get("root"), roots)


def _check_view_fields(
    check: Check, path: Path, fields: Mapping[str, Any], groups: list[Any]
) -> None:
    check.known(path, fields, VIEW_KEYS, {})
    check.flag((*path, "link_dirs"), fields.get("link_dirs"))
    wanted = fields.get("group", [])
    for name in wanted if isinstance(wanted, list) else [wanted]:
        if name not in (*groups, UNNAMED_GROUP):
            check.wrong(
                (*path, "group"),
                f"names {str(name)[:60]!r}, which is no group here",
                "Write the name of a group below specs.",
            )
    if "link" in fields:
        check.choice((*path, "link"), fields["link"], ("all", "run", "roots"))
    if "link_type" in fields:
        known = ("symlink", "hardlink", "copy", "soft", "hard", "relocate", "add")
        check.choice((*path, "link_type"), fields["link_type"], known)
    for key in ("select", "exclude"):
        check.spec_list((*path, key), fields.get(key, []), named=False)
    for wanted, place in check.mapping((*path, "projections"), fields.get("projections")).items():
        here = (*path, "projections", wanted)
        check.spec(here, wanted, named=False)
        if not isinstance(place, str) or not _PROJECTION.match(place) or ".." in place:
            check.wrong(here, "is not a folder below the view", "Write '{name}-{version}'.")


def _check_view_root(check: Check, path: Path, root: Any, roots: dict[str, str]) -> None:
    """Check that a view has its own folder below /opt, and replaces nothing of the image."""
    here = (*path, "root")
    if not isinstance(root, str):
        problem = "must have a root" if root is None else f"must be a path, not {kind(root)}"
        check.wrong(here, problem, "Write a folder such as /opt/tools.")
        return
    folder = root.rstrip("/")
    if not _VIEW_ROOT.match(root) or ".." in root or "//" in root or "/./" in root:
        check.wrong(here, "is not a folder below /opt", "Write a folder such as /opt/tools.")
        return
    for taken in (*_TAKEN_ROOTS, *roots):
        if f"{folder}/".startswith(f"{taken}/") or f"{taken}/".startswith(f"{folder}/"):
            check.wrong(
                here, f"is taken: {taken} is another's", "Write a folder such as /opt/tools."
            )
            return
    roots[folder] = root
