"""Checks `packages` of a description, entry by entry as Spack's schema has it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from image_builder.sources.checking import Check, kind
from image_builder.sources.entries import short
from image_builder.sources.safe_yaml import Path
from image_builder.spack.spec import MAX_SPEC

PACKAGE_KEYS = (
    "version",
    "variants",
    "require",
    "prefer",
    "conflict",
    "compiler",
    "providers",
    "target",
    "buildable",
    "externals",
)
_WHY_REFUSED = {
    "package_attributes": "It would change where sources come from: put a recipe into the catalogue.",
    "paths": "Write externals below the package, each with a spec and a prefix.",
    "modules": "There are no modules in an image: write externals, each with a spec and a prefix.",
    "permissions": "Everybody may read what is in an image: leave it out.",
}
_ONLY_FOR_ONE = {
    "version": "Write it below the package that it is about.",
    "externals": "Write it below the package that is there.",
}
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_WORD = re.compile(r"[A-Za-z0-9_@.:=,+~-]+\Z")
_PLACE = re.compile(r"/[A-Za-z0-9][A-Za-z0-9._+/-]*\Z")
_EMPTY = ("flags", "environment", "extra_rpaths")
"""What Spack itself writes of a compiler, and that may only be empty here."""
_GROUPS = ("one_of", "any_of")
_EXTERNAL_KEYS = ("spec", "prefix", "extra_attributes", "id", "dependencies")
_EDGE_KEYS = ("id", "spec", "deptypes", "virtuals")
"""What an external says of what it needs, from Spack 1.1 on."""
_WHY_NOT_IN_EXTERNAL = {
    "modules": "There are no modules in an image: write prefix.",
    "buildable": "Write it beside externals, not in one of them.",
}
_EDGE_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,-]{0,200}\Z")


def check_packages(check: Check, value: Any) -> None:
    """Refuse what is wrong below `packages`."""
    path: Path = ("spack", "packages")
    for name, fields in check.mapping(path, value).items():
        here = (*path, name)
        if not _PACKAGE_NAME.match(name) or len(name) > MAX_SPEC:
            check.wrong(here, "is not a package's name", "Write a name such as hdf5, or all.")
        elif name != name.lower():
            check.wrong(here, "names a package in capital letters", f"Write {name.lower()}.")
        fields = check.mapping(here, fields)
        check.known(here, fields, PACKAGE_KEYS, _WHY_REFUSED)
        for key, hint in _ONLY_FOR_ONE.items():
            if name == "all" and key in fields:
                check.wrong((*here, key), "is not allowed here", hint)
        _check_package(check, here, fields)


def _check_package(check: Check, path: Path, fields: Mapping[str, Any]) -> None:
    for key in ("version", "compiler", "target"):
        if key in fields:
            _check_words(check, (*path, key), fields[key])
    check.flag((*path, "buildable"), fields.get("buildable"))
    variants = fields.get("variants", [])
    for at, entry in enumerate(variants if isinstance(variants, list) else [variants]):
        check.spec((*path, "variants", at), entry, named=False)
    if "require" in fields:
        _check_require(check, (*path, "require"), fields["require"])
    for key in ("prefer", "conflict"):
        if key in fields:
            for at, rule in enumerate(check.list((*path, key), fields[key])):
                _check_rule(check, (*path, key, at), rule, ())
    providers = check.mapping((*path, "providers"), fields.get("providers"))
    for virtual, names in providers.items():
        check.spec_list((*path, "providers", virtual), names, named=True)
    externals = (*path, "externals")
    for at, external in enumerate(check.list(externals, fields.get("externals", []))):
        _check_external(check, (*externals, at), check.mapping((*externals, at), external))


def _check_words(check: Check, path: Path, value: Any) -> None:
    for at, entry in enumerate(check.list(path, value)):
        text = "" if isinstance(entry, list | dict) else str(entry)
        if len(text) > MAX_SPEC or not _WORD.match(text):
            check.wrong((*path, at), f"{short(text)} is not a {path[-1]}", "Write one word.")


def _check_require(check: Check, path: Path, value: Any) -> None:
    """Check a `require`: a spec, or a list of specs and groups of specs."""
    if isinstance(value, str):
        check.spec(path, value, named=False)
    elif not isinstance(value, list):
        hint = "Write a spec, or a list: '- one_of: [+mpi, ~mpi]'."
        check.wrong(path, f"must be a text or a list, not {kind(value)}", hint)
    else:
        for at, rule in enumerate(check.list(path, value)):
            _check_rule(check, (*path, at), rule, _GROUPS)


def _check_rule(check: Check, path: Path, rule: Any, groups: tuple[str, ...]) -> None:
    if not isinstance(rule, dict):
        check.spec(path, rule, named=False)
        return
    check.known(path, rule, ("spec", *groups, "when", "message"), _why_no_group(groups))
    named = [key for key in ("spec", *groups) if key in rule]
    if len(named) != 1 and not set(rule) - {"spec", *groups, "when", "message"}:
        check.wrong(
            path,
            f"must name one of {', '.join(('spec', *groups))}",
            "Write '- spec: +mpi', with a when: below it if it is for some specs only.",
        )
    for key in ("spec", "when"):
        if key in rule:
            check.spec((*path, key), rule[key], named=False)
    for key in groups:
        if key in rule:
            check.spec_list((*path, key), rule[key], named=False)
            if rule[key] == []:
                check.wrong((*path, key), "is empty", "Write at least one spec.")
    if not isinstance(rule.get("message", ""), str):
        check.wrong((*path, "message"), "must be a text", "Write a sentence.")


def _why_no_group(groups: tuple[str, ...]) -> dict[str, str]:
    return {} if groups else dict.fromkeys(_GROUPS, "Groups stand below require: write a spec.")


def _check_external(check: Check, path: Path, fields: Mapping[str, Any]) -> None:
    check.known(
        path,
        {key: value for key, value in fields.items() if value or key != "modules"},
        _EXTERNAL_KEYS,
        _WHY_NOT_IN_EXTERNAL,
    )
    check.spec((*path, "spec"), fields.get("spec"), named=True)
    _check_place(check, (*path, "prefix"), fields.get("prefix"))
    if "id" in fields:
        _check_edge_word(check, (*path, "id"), fields["id"])
    _check_edges(check, (*path, "dependencies"), fields.get("dependencies", []))
    here = (*path, "extra_attributes")
    attributes = check.mapping(here, fields.get("extra_attributes"))
    said = {key: value for key, value in attributes.items() if value or key not in _EMPTY}
    check.known(here, said, ("compilers",), {})
    compilers = check.mapping((*here, "compilers"), attributes.get("compilers"))
    for language, place in compilers.items():
        _check_place(check, (*here, "compilers", language), place)


def _check_edges(check: Check, path: Path, value: Any) -> None:
    """Check what an external says of the packages that it needs."""
    for at, entry in enumerate(check.list(path, value)):
        here = (*path, at)
        fields = check.mapping(here, entry)
        check.known(here, fields, _EDGE_KEYS, {})
        if "spec" in fields:
            check.spec((*here, "spec"), fields["spec"], named=True)
        types = fields.get("deptypes", [])
        words = [*(types if isinstance(types, list) else [types])]
        for word in [*words, *(fields[key] for key in ("id", "virtuals") if key in fields)]:
            _check_edge_word(check, here, word)


def _check_edge_word(check: Check, path: Path, value: Any) -> None:
    if not isinstance(value, str) or not _EDGE_WORD.match(value):
        check.wrong(path, "holds what is not a word", "Write one word, such as link.")


def _check_place(check: Check, path: Path, value: Any) -> None:
    is_path = isinstance(value, str) and len(value) <= MAX_SPEC and _PLACE.match(value)
    if not is_path or ".." in value:
        check.wrong(
            path,
            "is not the path of a folder or file in the image",
            "Write an absolute path such as /usr.",
        )
