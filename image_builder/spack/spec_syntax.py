"""Reads the syntax of Spack's specs: text to nodes, in one pass from left to right. Pure.

Releases differ. Before 1.0 `%gcc@12` names a compiler, and the words behind it belong to the
package; from 1.0 on it is a direct dependency, and they belong to that. `[…]` behind a sigil was
read from 0.21 on, `%[…]`, `%%`, `%c=gcc` and `:=` from 1.0 on.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from typing import NoReturn

COMPILERS_ARE_PACKAGES = (1, 0)
"""The release from which on `%` begins a node of its own."""
_READS_EXACT = (0, 20)
_READS_BRACKETS = (0, 21)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_BLANKS = re.compile(r"\s*")
_SIGIL = re.compile(r"%%|%|\^")
_SWITCH = re.compile(r"\+\+|~~|--|[+~-]")
_ASSIGNMENT = re.compile(r":?={1,2}")
_VALUE = re.compile(r"[A-Za-z0-9_+*.,:=~/-]+")
_EDGE_VALUE = re.compile(r"[A-Za-z0-9_+*.,:=%^~/-]+")
_QUOTED = re.compile(r"[A-Za-z0-9_+*.,:=%^~/@ -]*")
"""What may stand in quotes here: nothing that a shell would read as more than a word."""
_GIT_VERSION = re.compile(r"git\.[A-Za-z0-9_][A-Za-z0-9_./-]*|[A-Fa-f0-9]{40}(?![A-Za-z0-9_.-])")
_VERSION = re.compile(r"=?[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_ARCHIVE = re.compile(r"(?P<name>.+?)-v?(?P<version>\d+(?:\.\w+)+)")
"""A name and version as archives have them: `hdf5-1.14`."""
_EDGE_KEYS = ("deptypes", "virtuals", "when")
_MEANT = {"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "−": "-", "×": "x", "、": ","}
_OTHERWISE = {
    ">": "Write a range: hdf5@1.12: is 1.12 or newer.",
    "<": "Write a range: hdf5@:1.14 is 1.14 or older.",
    "!": "Write the versions that are wanted: hdf5@1.10:1.12,1.14.",
    ":": "Write a version behind @: hdf5@1.14, or hdf5@1.12:1.14 for a range.",
    ",": "Write each spec in an entry of its own.",
    "'": "Write quotes around a value alone: cflags='-O3 -g'.",
    '"': "Write quotes around a value alone: cflags='-O3 -g'.",
    "(": "Write a spec such as hdf5@1.14+mpi.",
    "#": "Put a blank before a comment.",
}


class SpecError(ValueError):
    """A text is not one spec: `problem` says why, `hint` what to write."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(f"{problem}. {hint}")
        self.problem = problem
        self.hint = hint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Describes one word of a node, without quotes; `+x` and `~x` have values `true` and `false`.

    `propagates` says that dependencies get it, too (`++x`, `key==value`).
    """

    key: str
    value: str
    text: str
    propagates: bool = False

    @property
    def is_switch(self) -> bool:
        """Return whether it is written `+x` or `~x`."""
        return self.text[0] in "+~-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """Describes one node that a spec names.

    `sigil` is `` for the root, `^` for a dependency, `%` for a direct one. `virtuals` are the
    virtual packages that it is to provide there; `is_conditional` says that the spec names it
    under a condition only.
    """

    sigil: str = ""
    name: str = ""
    version: str = ""
    settings: tuple[Setting, ...] = ()
    virtuals: tuple[str, ...] = ()
    is_conditional: bool = False

    @property
    def variants(self) -> dict[str, str]:
        """Return the settings by key; `+x` and `~x` are `x` with `true` and `false`."""
        return {setting.key: setting.value for setting in self.settings}

    def values_of(self, key: str) -> tuple[str, ...]:
        """Return every value of a key that may stand more than once, such as `cflags`."""
        return tuple(setting.value for setting in self.settings if setting.key == key)


@functools.lru_cache(maxsize=4096)
def read(text: str, release: tuple[int, ...]) -> tuple[Node, ...]:
    """Return the nodes of the one spec in `text`, as `release` of Spack reads it, its root first.

    The root's name is empty in a bare constraint (`+mpi`). Raises `SpecError`.
    """
    return _Reader(text, release).spec()


def character_problem(text: str) -> SpecError | None:
    """Return what is wrong with the first character that no spec contains, or None."""
    for letter in text:
        if not (letter.isascii() and (letter.isprintable() or letter in "\t\n")):
            return _odd_character(letter)
    return None


def in_plain_characters(text: str) -> str:
    """Return a text with each character that only looks like one of a spec as that one."""
    return "".join(
        letter if letter.isascii() or unicodedata.category(letter) == "Cf" else _meant(letter)
        for letter in text
    )


def _meant(letter: str) -> str:
    meant = _MEANT.get(letter) or {"Pd": "-", "Zs": " "}.get(unicodedata.category(letter), "")
    return meant or unicodedata.normalize("NFKC", letter)


def _odd_character(letter: str) -> SpecError:
    name = unicodedata.name(letter, "a control character").lower()
    shown = f"the character U+{ord(letter):04X} ({name})"
    meant = _meant(letter)
    if unicodedata.category(letter) == "Cf":
        return SpecError(f"holds {shown}", "Remove it: it cannot be seen.")
    if letter.isascii() or not (meant.isascii() and meant.isprintable()):
        return SpecError(f"holds {shown}", "Write plain letters, digits and signs.")
    return SpecError(
        f"holds {shown}", "Write " + ("a plain blank." if meant == " " else f"{meant!r}.")
    )


@dataclasses.dataclass(kw_only=True)
class _Draft:
    """A node while it is read; `written` is how an error shows it."""

    sigil: str = ""
    name: str = ""
    version: str = ""
    settings: list[Setting] = dataclasses.field(default_factory=list)
    virtuals: tuple[str, ...] = ()
    is_conditional: bool = False
    is_old_compiler: bool = False

    @property
    def written(self) -> str:
        return (f"{self.name}@{self.version}" if self.version else self.name) or "the spec"

    def node(self) -> Node:
        return Node(
            sigil=self.sigil,
            name=self.name,
            version=self.version,
            settings=tuple(self.settings),
            virtuals=self.virtuals,
            is_conditional=self.is_conditional,
        )


class _Reader:
    """Reads one text from left to right, each character no more than a few times."""

    def __init__(self, text: str, release: tuple[int, ...]) -> None:
        self.text, self.at = text, 0
        self.release = release
        self.drafts = [_Draft()]
        self.owner = self.drafts[0]

    def spec(self) -> tuple[Node, ...]:
        self._skip()
        if self._starts("*") and self._is_new():
            self.at += 1
        else:
            self.owner.name = self._package_name()
        while not self._is_done():
            self._part()
        self._require_whole()
        return tuple(draft.node() for draft in self.drafts)

    def _part(self) -> None:
        if self._starts("%", "^"):
            self._dependency()
        elif self._starts("@"):
            self._version_of(self.owner)
        elif switch := self._take(_SWITCH):
            self._switch(switch)
        elif not self._key_and_value():
            self._unexpected()

    def _is_new(self) -> bool:
        return self.release >= COMPILERS_ARE_PACKAGES

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match.group()

    def _skip(self) -> bool:
        return bool(self._take(_BLANKS))

    def _starts(self, *marks: str) -> bool:
        return self.text.startswith(marks, self.at)

    def _is_done(self) -> bool:
        self._skip()
        return self.at >= len(self.text)

    def _package_name(self) -> str:
        """Return a package's name, or nothing at a key with its value, a file or a sigil."""
        before = self.at
        name = self._take(_NAME)
        if not name:
            return ""
        if _ASSIGNMENT.match(self.text, self.at):
            self.at = before
            return ""
        if archive := _ARCHIVE.fullmatch(name):
            raise SpecError(
                "has a version without @", f"Write {archive['name']}@{archive['version']}."
            )
        if name.endswith((".yaml", ".json")) or self._starts("/"):
            raise SpecError("names a file or an installed package", _NAME_AND_VERSION)
        return name.rsplit(".", 1)[-1]

    def _dependency(self) -> None:
        sigil = self._take(_SIGIL)
        if sigil != "^" and not self._is_new():
            self._old_compiler(sigil)
            return
        draft = _Draft(sigil=sigil[0])
        if self._starts("["):
            self._edge(draft)
        self._skip()
        draft.virtuals += self._virtuals()
        if self._starts("*") and self._is_new():
            self.at += 1
        else:
            draft.name = self._package_name()
        self.drafts.append(draft)
        self.owner = draft
        if not draft.name and (self._is_done() or self._starts("%", "^", "]")):
            raise SpecError(f"names nothing behind {sigil}", "Write a package, such as ^zlib.")

    def _old_compiler(self, sigil: str) -> None:
        """`%gcc@12` before 1.0: a name and a version; what follows is the package's."""
        if sigil == "%%" or self._starts("["):
            held = sigil if sigil == "%%" else f"{sigil}["
            raise SpecError(f"holds {held}, which Spack reads from 1.0 on", "Write %gcc@12.")
        self._skip()
        compiler = _Draft(sigil="%", name=self._take(_NAME), is_old_compiler=True)
        if not compiler.name:
            raise SpecError("names nothing behind %", "Write a compiler, such as %gcc@12.")
        if self._starts("=", ","):
            raise SpecError(
                f"holds %{compiler.name}{self.text[self.at]}…, which Spack reads from 1.0 on",
                "Write %gcc@12.",
            )
        if self.drafts[-1].is_old_compiler:
            raise SpecError("names two compilers", "Keep one of them.")
        before = self.at
        self._skip()
        if self._starts("@"):
            self._version_of(compiler)
        else:
            self.at = before
        self.drafts.append(compiler)

    def _edge(self, draft: _Draft) -> None:
        """`[virtuals=c,cxx when='%c']` behind a sigil."""
        if self.release < _READS_BRACKETS:
            raise SpecError("holds [, which Spack reads from 0.21 on", "Write ^mpich.")
        self.at += 1
        while not self._is_done() and not self._starts("]"):
            key = self._take(_IDENTIFIER)
            if key not in _EDGE_KEYS or not self._starts("="):
                raise SpecError("holds words in [] that Spack does not know", _EDGES)
            self.at += 1
            value = self._value(key, _EDGE_VALUE)
            draft.is_conditional |= key == "when"
            draft.virtuals += tuple(value.split(",")) if key == "virtuals" else ()
        if not self._starts("]"):
            raise SpecError("has a [ without its ]", "Write ].")
        self.at += 1

    def _virtuals(self) -> tuple[str, ...]:
        """`c,cxx=` before the name of a direct dependency, from 1.0 on."""
        before, names = self.at, [self._take(_IDENTIFIER)]
        while names[-1] and self._starts(","):
            self.at += 1
            names.append(self._take(_IDENTIFIER))
        if self._is_new() and all(names) and self._starts("=") and not self._starts("=="):
            self.at += 1
            return tuple(names)
        self.at = before
        return ()

    def _version_of(self, draft: _Draft) -> None:
        self.at += 1
        self._skip()
        version = self._take(_GIT_VERSION)
        if version and self._starts("="):
            self.at += 1
            version += "=" + self._take(_VERSION)
        version = version or self._versions()
        if not version:
            raise self._no_version(draft)
        if "=" in version[:1] and self.release < _READS_EXACT:
            raise SpecError(
                f"holds @{version}, which Spack reads from 0.20 on", f"Write @{version[1:]}."
            )
        if draft.version:
            raise SpecError(
                f"names two versions, {draft.version} and {version}",
                f"Keep one: {draft.name or ''}@{version}.",
            )
        draft.version = version

    def _no_version(self, draft: _Draft) -> SpecError:
        if self._starts("<", ">"):
            return SpecError(
                f"holds the sign {self.text[self.at]!r}", _OTHERWISE[self.text[self.at]]
            )
        example = f"{draft.name or 'hdf5'}@1.14"
        return SpecError("misses a version behind @", f"Write {example}, or leave the @ out.")

    def _versions(self) -> str:
        """`1.2`, `1.2:1.4`, `=1.2`, several joined by commas."""
        versions = []
        while True:
            version = self._take(_VERSION)
            if self._starts(":"):
                self.at += 1
                version += ":" + self._upper()
                if "=" in version:
                    raise SpecError(f"has = in the range {version}", "Write a range without =.")
            if not version:
                return ""
            versions.append(version)
            before = self.at
            self._skip()
            if not self._starts(","):
                self.at = before
                return ",".join(versions)
            self.at += 1
            self._skip()

    def _upper(self) -> str:
        """The upper end of a range; in `@1.2:cflags=-O3` there is none."""
        before = self.at
        high = self._take(_VERSION)
        after = self.at
        self._skip()
        if self._starts("="):
            self.at = before
            return ""
        self.at = after
        return high

    def _switch(self, switch: str) -> None:
        self._skip()
        key = self._take(_NAME)
        if not key and self._starts("="):
            raise SpecError(f"holds the sign '{switch}='", _OTHERWISE[">"])
        if not key:
            raise SpecError(
                f"misses a variant's name behind {switch}", f"Write {switch}mpi, or leave it out."
            )
        if self._starts("="):
            raise SpecError(f"gives {switch}{key} a value", f"Write {switch}{key}, or {key}=value.")
        value = "true" if switch[0] == "+" else "false"
        self._add(key, value, f"{switch}{key}", len(switch) == 2)

    def _key_and_value(self) -> bool:
        before = self.at
        key = self._take(_NAME)
        assignment = self._take(_ASSIGNMENT) if key else ""
        if not assignment:
            self.at = before
            return False
        if assignment.startswith(":") and not self._is_new():
            raise SpecError(f"holds {key}:=, which Spack reads from 1.0 on", f"Write {key}=.")
        value = self._value(key)
        if value.lower() in ("true", "false"):
            value = value.lower()
        self._add(key, value, self.text[before : self.at], "==" in assignment)
        return True

    def _value(self, key: str, plain: re.Pattern[str] = _VALUE) -> str:
        if self._starts("'", '"'):
            return self._quoted(key)
        value = self._take(plain)
        if not value:
            raise SpecError(f"misses a value behind {key}=", f"Write {key}=value.")
        if self._is_new() and self._starts("^", "%"):
            rest = self.text[self.at : self.at + 20].split()[0]
            raise SpecError(
                f"has {rest} in the value of {key}, as Spack reads it from 1.0 on",
                f"Write a blank before {rest[0]}.",
            )
        return value

    def _quoted(self, key: str) -> str:
        quote = self.text[self.at]
        self.at += 1
        value = self._take(_QUOTED)
        if self.at >= len(self.text):
            raise SpecError(f"has a quote in {key} that does not end", f"Write {quote} at its end.")
        if not self._starts(quote):
            raise SpecError(
                f"holds the sign {self.text[self.at]!r} in the value of {key}",
                "Write letters, digits, blanks and +*.,:=%^~/@-.",
            )
        self.at += 1
        return value

    def _add(self, key: str, value: str, text: str, propagates: bool) -> None:
        if key not in FLAGS and any(setting.key == key for setting in self.owner.settings):
            raise SpecError(f"sets {key} twice", "Keep one of the two.")
        self.owner.settings.append(Setting(key=key, value=value, text=text, propagates=propagates))

    def _require_whole(self) -> None:
        if len(self.drafts) == 1 and self.owner == _Draft():
            raise SpecError("names nothing", "Write a package such as hdf5@1.14+mpi.")

    def _unexpected(self) -> NoReturn:
        """Something that begins no part of a spec: a second name, or a sign."""
        letter = self.text[self.at]
        word = self.text[self.at :].split()[0][:60]
        if letter == "." and self.owner.version:
            raise SpecError(
                f"ends a version with {word}",
                f"Write {self.owner.name or 'hdf5'}@{self.owner.version}, which is every version that begins so.",
            )
        if letter == "/" or letter == ".":
            raise SpecError("names a file or an installed package", _NAME_AND_VERSION)
        if letter == "$":
            raise SpecError(f"holds {word}", "Write $name as an entry of its own.")
        if letter == "[":
            raise SpecError(f"holds {word}", f"Write {self.owner.name or 'hdf5'}+variant.")
        if not _NAME.match(word):
            raise SpecError(
                f"holds the sign {letter!r}",
                _OTHERWISE.get(letter, "Write name@version, +variant, key=value, ^dependency."),
            )
        if _ASSIGNMENT.match(self.text[self.at + len(word) :].lstrip()):
            raise SpecError(
                f"has a blank before the = of {word}", f"Write {word}=value without blanks."
            )
        if re.match(r"v?\d", word):
            raise SpecError(
                f"holds {word} without a sign before it",
                f"Write {self.owner.name or 'hdf5'}@{word.removeprefix('v')} for a version.",
            )
        raise SpecError(
            f"holds two specs, or {word} misses its sign",
            f"Write {word} in an entry of its own, +{word} for a variant, or ^{word} for a "
            "dependency.",
        )


FLAGS = frozenset({"cflags", "cxxflags", "fflags", "cppflags", "ldflags", "ldlibs"})
"""Keys whose values are compiler flags; each may stand more than once."""
_NAME_AND_VERSION = "Write the package's name and version."
_EDGES = f"Known are {', '.join(_EDGE_KEYS)}, as in ^[virtuals=mpi] mpich."
