"""A step's description, `eflows4hpc.yaml`: read, checked entry by entry, and not yet held against a
machine. Pure.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from image_builder.errors import BadDescription
from image_builder.request import cpu_targets
from image_builder.sources.safe_yaml import Document, Path, load
from image_builder.spack import spec as spack_spec

KEYS = ("apt", "pip", "spack", "smoke", "slim")
SPACK_KEYS = ("specs", "packages", "concretizer", "view", "definitions")
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
CONCRETIZER_KEYS = ("unify", "reuse", "targets", "duplicates", "timeout", "error_on_timeout")
MAX_ENTRIES = 1000
MAX_SHOWN = 20

_APT = re.compile(
    r"[a-z0-9][a-z0-9.+-]*[a-z0-9+](?::[a-z0-9-]+)?(?:=[A-Za-z0-9][A-Za-z0-9.+:~*-]*)?\Z"
)
_PIP_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PIP_VERSION = r"\s*(?:===?|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9][A-Za-z0-9._*+!-]*\s*"
_PIP = re.compile(
    rf"{_PIP_NAME}\s*(?:\[\s*{_PIP_NAME}(?:\s*,\s*{_PIP_NAME})*\s*\])?"
    rf"(?:{_PIP_VERSION}(?:,{_PIP_VERSION})*|\s*\({_PIP_VERSION}(?:,{_PIP_VERSION})*\))?"
    r"\s*(?:;[A-Za-z0-9_ .'\"<>=!()~,+-]+)?\Z"
)
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_PLACE = re.compile(r"/[A-Za-z0-9][A-Za-z0-9._+/-]*\Z")
_WHY_REFUSED = {
    "repos": "Packages come from the site's catalogue: ask its operator to add a recipe.",
    "mirrors": "Where sources come from is the site's choice: leave it out.",
    "include": "Write what the other file holds here.",
    "include_concrete": "Write the specs here: they are concretized for the machine.",
    "develop": "Packages are built from their recipes' sources: name a version, or install from post_inst.sh.",
    "config": "How Spack works is the site's choice: leave it out.",
    "bootstrap": "How Spack works is the site's choice: leave it out.",
    "compilers": "Install a compiler under apt and name it with packages: all: compiler: [gcc@12].",
    "toolchains": "Name a compiler with packages: all: compiler: [gcc@12].",
    "modules": "An image has a view in place of module files: leave it out.",
    "env_vars": "Set variables in the step's own scripts.",
    "cdash": "Leave it out.",
    "ci": "Leave it out.",
    "container": "Leave it out.",
    "upstreams": "Leave it out.",
}
_WHY_PACKAGE_KEY_REFUSED = {
    "package_attributes": "It would change where sources come from: put a recipe into the catalogue.",
    "permissions": "Everybody may read what is in an image: leave it out.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a step says it needs. `pip` None: nothing was said, a `requirements.txt` beside it
    counts.

    `spack` holds only what may be handed on to Spack; `lines` says where its parts stand in the
    file.
    """

    file: str
    text: str
    apt: tuple[str, ...] = ()
    pip: tuple[str, ...] | None = None
    spack: Mapping[str, Any] | None = None
    smoke: tuple[str, ...] | None = None
    slim: bool | None = None
    warnings: tuple[str, ...] = ()
    document: Document | None = None

    def line(self, *path: str | int) -> int | None:
        """The line of a part of the file, such as `"spack", "specs", 0`."""
        return None if self.document is None else self.document.line(path)


def parse_description(text: str, file: str) -> Description:
    """The description that `text` holds; `file` is its name in the step's folder.

    Raises `BadDescription` that tells every wrong entry with its line, and what to write instead.
    """
    document = load(text, file)
    check = _Check(document, file)
    fields = check.mapping((), document.value)
    check.unknown_keys(fields)
    smoke = check.entries(("smoke",), fields.get("smoke"), _smoke_problem)
    description = Description(
        file=file,
        text=text,
        document=document,
        apt=check.entries(("apt",), fields.get("apt"), _apt_problem) or (),
        pip=check.entries(("pip",), fields.get("pip"), pip_problem),
        spack=check.spack(fields.get("spack")),
        smoke=smoke or None,
        slim=check.flag(("slim",), fields.get("slim")),
        warnings=tuple(check.warnings),
    )
    check.raise_problems()
    return description


def pip_problem(text: str) -> tuple[str, str] | None:
    """What is wrong with an entry under `pip`, and what to write instead."""
    if text.startswith("-"):
        return (
            f"{_short(text)} is an option of pip",
            "Write packages only, or a requirements.txt in the step's folder.",
        )
    if "://" in text or " @ " in text or "/" in text.split(";")[0]:
        return (
            f"{_short(text)} is not a package's name",
            "Write name==version; a requirements.txt or post_inst.sh may install from elsewhere.",
        )
    if not _PIP.match(text):
        return (
            f"{_short(text)} is not a Python requirement",
            "Write name, name==1.2 or name[extra]>=1.2.",
        )
    return None


def _apt_problem(text: str) -> tuple[str, str] | None:
    if not _APT.match(text):
        return (
            f"{_short(text)} is not a Debian package",
            "Write its name, perhaps with =version, such as libgsl-dev.",
        )
    return None


def _smoke_problem(text: str) -> tuple[str, str] | None:
    if any(ord(letter) < 32 for letter in text):
        return (
            "a word of the command holds a line end or control character",
            "Put the command into a script.",
        )
    return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


class _Check:
    """Collects everything that is wrong with one document."""

    def __init__(self, document: Document, file: str) -> None:
        self.document = document
        self.file = file
        self.problems: list[tuple[int, str, str]] = []
        self.warnings: list[str] = []

    def wrong(self, path: Path, problem: str, hint: str) -> None:
        self.problems.append((self.document.line(path), f"{_dotted(path)}{problem}", hint))

    def raise_problems(self) -> None:
        if not self.problems:
            return
        ordered = sorted(dict.fromkeys(self.problems))
        line, problem, hint = ordered[0]
        others = [
            f"line {other}: {what} ({advice})" for other, what, advice in ordered[1:MAX_SHOWN]
        ]
        if len(ordered) > MAX_SHOWN:
            others.append(f"and {len(ordered) - MAX_SHOWN} more")
        if others:
            problem = f"{problem} ({hint}); " + "; ".join(others)
            hint = "Correct every line named."
        raise BadDescription(problem, file=self.file, line=line, hint=hint)

    def mapping(self, path: Path, value: Any) -> Mapping[str, Any]:
        if value is None or isinstance(value, dict):
            return value or {}
        self.wrong(
            path,
            f"must be a mapping, not {_kind(value)}",
            "Write keys with a colon, and their values below.",
        )
        return {}

    def unknown_keys(self, fields: Mapping[str, Any]) -> None:
        for key in fields:
            if key in KEYS:
                continue
            close = cpu_targets.nearest(key, KEYS, 1)
            if close:
                self.wrong((key,), "is not a known key", f"Did you mean {close[0]}?")
            else:
                self.warnings.append(
                    f"{self.file}, line {self.document.line((key,))}: {key[:60]!r} is not a known key"
                    f" and was not used; known are {', '.join(KEYS)}"
                )

    def entries(
        self, path: Path, value: Any, problem_of: Callable[[str], tuple[str, str] | None]
    ) -> tuple[str, ...] | None:
        """A list of texts, each without a problem; None when there is nothing."""
        if value is None:
            return None
        if not isinstance(value, list):
            self.wrong(
                path,
                f"must be a list, not {_kind(value)}",
                "Write each entry on a line that begins with '- '.",
            )
            return None
        if len(value) > MAX_ENTRIES:
            self.wrong(
                path, f"has more than {MAX_ENTRIES} entries", "Keep only what the step needs."
            )
            return None
        return tuple(self._entry((*path, at), entry, problem_of) for at, entry in enumerate(value))

    def _entry(
        self, path: Path, entry: Any, problem_of: Callable[[str], tuple[str, str] | None]
    ) -> str:
        text = entry.strip() if isinstance(entry, str) else ""
        found = (
            problem_of(text) if text else (f"must be a text, not {_kind(entry)}", "Write one name.")
        )
        if found:
            self.wrong(path, *found)
        return text

    def flag(self, path: Path, value: Any) -> bool | None:
        if value is not None and not isinstance(value, bool):
            self.wrong(path, f"must be true or false, not {_kind(value)}", "Write true or false.")
            return None
        return value

    def spec(self, path: Path, value: Any, *, named: bool) -> None:
        if not isinstance(value, str):
            self.wrong(
                path, f"must be a spec, not {_kind(value)}", "Write a text such as hdf5@1.14+mpi."
            )
            return
        found = spack_spec.problem(value.strip(), named=named)
        if found:
            self.wrong(path, *found)

    def spec_list(self, path: Path, value: Any, *, named: bool) -> None:
        for at, entry in enumerate(self._list(path, value)):
            self.spec((*path, at), entry, named=named)

    def _list(self, path: Path, value: Any) -> list[Any]:
        if isinstance(value, list):
            return value
        self.wrong(
            path,
            f"must be a list, not {_kind(value)}",
            "Write each entry on a line that begins with '- '.",
        )
        return []

    def spack(self, value: Any) -> Mapping[str, Any] | None:
        if value is None:
            return None
        fields = self.mapping(("spack",), value)
        self._known(("spack",), fields, SPACK_KEYS, _WHY_REFUSED)
        self._spec_matrix(("spack", "specs"), fields.get("specs"))
        self._definitions(fields.get("definitions"))
        self._packages(fields.get("packages"))
        self._known(
            ("spack", "concretizer"),
            self.mapping(("spack", "concretizer"), fields.get("concretizer")),
            CONCRETIZER_KEYS,
            {},
        )
        unify = (
            (fields.get("concretizer") or {}).get("unify")
            if isinstance(fields.get("concretizer"), dict)
            else None
        )
        if unify not in (None, True, False, "when_possible"):
            self.wrong(
                ("spack", "concretizer", "unify"),
                "is not known",
                "Write true, false or when_possible.",
            )
        if not isinstance(fields.get("view"), bool | str | dict | None):
            self.wrong(("spack", "view"), "is not known", "Leave it out: the view is at /opt/view.")
        return fields

    def _known(
        self, path: Path, fields: Mapping[str, Any], known: tuple[str, ...], why: Mapping[str, str]
    ) -> None:
        for key in fields:
            if key not in known:
                close = cpu_targets.nearest(key, known, 1)
                self.wrong(
                    (*path, key),
                    "is not allowed here",
                    why.get(key)
                    or (
                        f"Did you mean {close[0]}?" if close else f"Allowed are {', '.join(known)}."
                    ),
                )

    def _spec_matrix(self, path: Path, value: Any) -> None:
        """`specs` or a definition: specs, `$names`, and matrices of them."""
        for at, entry in enumerate(self._list(path, value) if value is not None else ()):
            here = (*path, at)
            if not isinstance(entry, dict):
                self.spec(here, entry, named=path[1] == "specs")
                continue
            self._known(here, entry, ("matrix", "exclude"), {})
            for row_at, row in enumerate(self._list((*here, "matrix"), entry.get("matrix"))):
                self.spec_list((*here, "matrix", row_at), row, named=False)
            self.spec_list((*here, "exclude"), entry.get("exclude", []), named=False)

    def _definitions(self, value: Any) -> None:
        path: Path = ("spack", "definitions")
        for at, entry in enumerate(self._list(path, value) if value is not None else ()):
            for name, entries in self.mapping((*path, at), entry).items():
                if name == "when":
                    self.wrong(
                        (*path, at, name),
                        "is not allowed here",
                        "It would run code: name the specs.",
                    )
                elif not re.fullmatch(r"[A-Za-z_]\w*", name):
                    self.wrong((*path, at, name), "is not a name", "Write letters, digits and '_'.")
                else:
                    self._spec_matrix((*path, at, name), entries)

    def _packages(self, value: Any) -> None:
        path: Path = ("spack", "packages")
        for name, fields in self.mapping(path, value).items():
            here = (*path, name)
            if not _PACKAGE_NAME.match(name):
                self.wrong(here, "is not a package's name", "Write a name such as hdf5, or all.")
            fields = self.mapping(here, fields)
            self._known(here, fields, PACKAGE_KEYS, _WHY_PACKAGE_KEY_REFUSED)
            self._package(here, fields)

    def _package(self, path: Path, fields: Mapping[str, Any]) -> None:
        for key in ("version", "compiler", "target"):
            for at, entry in enumerate(
                self._list((*path, key), fields[key]) if key in fields else ()
            ):
                if not re.fullmatch(r"[A-Za-z0-9_@.:=,+~-]+", str(entry)):
                    self.wrong(
                        (*path, key, at), f"{_short(str(entry))} is not a {key}", "Write one word."
                    )
        self.flag((*path, "buildable"), fields.get("buildable"))
        variants = fields.get("variants", [])
        for at, entry in enumerate(variants if isinstance(variants, list) else [variants]):
            self.spec((*path, "variants", at), entry, named=False)
        for key in ("require", "prefer", "conflict"):
            if key in fields:
                self._rules((*path, key), fields[key])
        for virtual, names in self.mapping((*path, "providers"), fields.get("providers")).items():
            self.spec_list((*path, "providers", virtual), names, named=True)
        for at, external in enumerate(
            self._list((*path, "externals"), fields.get("externals", []))
        ):
            self._external(
                (*path, "externals", at), self.mapping((*path, "externals", at), external)
            )

    def _rules(self, path: Path, value: Any) -> None:
        """A `require`, `prefer` or `conflict`: a spec, or a list of specs and groups of specs."""
        for at, rule in enumerate(value if isinstance(value, list) else [value]):
            here = (*path, at)
            if not isinstance(rule, dict):
                self.spec(here, rule, named=False)
                continue
            self._known(here, rule, ("one_of", "any_of", "spec", "when", "message"), {})
            for key in ("spec", "when"):
                if key in rule:
                    self.spec((*here, key), rule[key], named=False)
            for key in ("one_of", "any_of"):
                self.spec_list((*here, key), rule.get(key, []), named=False)
            if not isinstance(rule.get("message", ""), str):
                self.wrong((*here, "message"), "must be a text", "Write a sentence.")

    def _external(self, path: Path, fields: Mapping[str, Any]) -> None:
        self._known(
            path,
            fields,
            ("spec", "prefix", "extra_attributes"),
            {"modules": "There are no modules in an image: write prefix."},
        )
        self.spec((*path, "spec"), fields.get("spec"), named=True)
        self._place((*path, "prefix"), fields.get("prefix"))
        attributes = self.mapping((*path, "extra_attributes"), fields.get("extra_attributes"))
        self._known((*path, "extra_attributes"), attributes, ("compilers",), {})
        compilers = self.mapping(
            (*path, "extra_attributes", "compilers"), attributes.get("compilers")
        )
        for language, place in compilers.items():
            self._place((*path, "extra_attributes", "compilers", language), place)

    def _place(self, path: Path, value: Any) -> None:
        if not isinstance(value, str) or not _PLACE.match(value) or ".." in value:
            self.wrong(
                path,
                "is not the path of a folder or file in the image",
                "Write an absolute path such as /usr.",
            )


def _kind(value: Any) -> str:
    return (
        {
            dict: "a mapping",
            list: "a list",
            str: "a text",
            bool: "true or false",
            int: "a number",
            float: "a number",
            type(None): "nothing",
        }[type(value)]
        if value != ""
        else "an empty text"
    )


def _dotted(path: Path) -> str:
    """`spack.specs[0] ` to begin a problem's text with."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else ("." if text else "") + str(part)[:60]
    return f"{text} " if text else ""
