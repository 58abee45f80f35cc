"""Reads `requirements.txt` as pip does: what it names, or every line that is wrong. Pure.

pip reads it only after Spack has built for hours, so everything that pip would refuse is refused here.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import shlex
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from image_builder.errors import BadDescription
from image_builder.sources.entries import MAX_ENTRY, requirement_problem, short
from image_builder.sources.pip_lines import (
    ALONE,
    BEHIND,
    GENERAL,
    SETTINGS,
    WITH_VALUE,
    Option,
    before_options,
    logical_lines,
    options_in,
)
from image_builder.sources.problems import Problem, raise_all
from image_builder.sources.step import StepFolder

FILE = "requirements.txt"
MAX_LINES = 5000
MAX_LINE = 16_000
MAX_FILES = 20
"""The most requirements files that a step's file may name, directly or through others."""
_MAX_URL = 2000
_PROJECT = ("pyproject.toml", "setup.py")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tar")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_VCS = re.compile(r"(?:git|hg|svn|bzr)\+")
_CLIENTS = {"hg": "mercurial", "svn": "subversion", "bzr": "brz"}
"""What Debian calls the programs that pip fetches with; a base image with Spack has git."""
_SSH = re.compile(r"(?:git\+)?(?:[\w.-]+@)(?P<host>[\w.-]+):(?P<path>[^/].*)")
"""A repository as ssh names it: `git@host:name/repository.git`."""
_SCHEMES = ("http", "https", "ftp")
_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")
_HASHES = {"sha256": 64, "sha384": 96, "sha512": 128}
"""The hashes that pip takes, and their length in digits."""
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]*")
_WHEEL = re.compile(r"[^\s-]+-[^\s-]+(?:-\d[^\s-]*)?-[^\s-]+-[^\s-]+-[^\s-]+\.whl")
_CONDA = re.compile(r"(?:name|channels|dependencies|prefix):|# This file may be used to create an")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
    """Holds a step's requirements; `packages` are those of all its files, each with file and line.

    `in_step` says that they name files of the step, and pip has to run in its folder.
    """

    text: str
    packages: tuple[tuple[str, int, str], ...] = ()
    in_step: bool = False
    warnings: tuple[str, ...] = ()


def read_requirements(
    text: str,
    folder: StepFolder | None,
    *,
    is_final: bool = True,
    apt: Collection[str] = (),
) -> Requirements | None:
    """Return what `requirements.txt` names; None if it is empty.

    Whether the step has a file is not checked without `folder`, or if it is not final: a script of
    the step may add files before pip runs. `apt` is what the image gets by apt. Raises
    `BadDescription` with every wrong line.
    """
    if not text.strip():
        return None
    reader = _Reader(folder, is_final, apt)
    reader.file(FILE, text)
    reader.hashes()
    return Requirements(
        text=text,
        packages=tuple(reader.packages),
        in_step=reader.in_step,
        warnings=tuple(reader.warnings),
    )


class _Reader:
    """Reads one requirements file and those that it names."""

    def __init__(self, folder: StepFolder | None, is_final: bool, apt: Collection[str]) -> None:
        self.folder = folder
        self.apt = {entry.split("=")[0].split(":")[0] for entry in apt}
        self.is_final = is_final and folder is not None
        self.packages: list[tuple[str, int, str]] = []
        self.warnings: list[str] = []
        self.seen: set[str] = set()
        self.problems: list[Problem] = []
        self.file_name = FILE
        self.in_step = False
        self.wants_hashes = self.has_constraints = False
        self.without_hash: list[tuple[str, int, str]] = []

    def file(self, name: str, text: str) -> None:
        """Read one file, then the files that it names, so that problems come file by file."""
        self.seen.add(name)
        self.file_name, self.problems = name, []
        if "\0" in text:
            raise BadDescription(
                "holds a NUL character", file=name, hint="Save the file as plain text."
            )
        if _is_conda(text):
            raise BadDescription(
                "is a list of conda's, which pip does not read",
                file=name,
                line=1,
                hint="Write one package a line, such as numpy==1.26.",
            )
        waiting: list[tuple[str, str]] = []
        for at, (number, line) in enumerate(logical_lines(text)):
            if at >= MAX_LINES or len(line) > MAX_LINE:
                self._wrong(number, "is too long", "Keep only what the step needs.")
                break
            self._line(number, line, waiting)
        raise_all(self.problems, name)
        for other, other_text in waiting:
            if other not in self.seen:
                self.file(other, other_text)

    def _wrong(self, number: int, problem: str, hint: str) -> None:
        self.problems.append(Problem(number, problem, hint))

    def _warn(self, number: int, text: str) -> None:
        self.warnings.append(f"{self.file_name}, line {number}: {text}")

    def _line(self, number: int, line: str, waiting: list[tuple[str, str]]) -> None:
        if _VARIABLE.search(line):
            self.in_step = True
            self._warn(number, "variables of the environment are empty in a build.")
        if not line.startswith("-"):
            self._requirement(number, line)
            return
        self._options(number, line, waiting)

    def _options(self, number: int, line: str, waiting: list[tuple[str, str]]) -> None:
        """Read a line of options as pip does: it follows one `-e`, `-r` or `-c`, or all others."""
        if re.match(r"-\s", line):
            self._wrong(number, "begins with a hyphen", f"Write {short(line[1:].strip())} alone.")
            return
        try:
            words = shlex.split(line)
        except ValueError:
            self._wrong(number, "has a quote that does not end", "Write it at the end, too.")
            return
        given, others = options_in(words)
        followed = next((one for kind in "erc" for one in given if one.kind == kind), None)
        for one in given:
            if followed in (None, one) or not one.is_known:
                self._option(number, one, waiting)
            else:
                others.append(one.name)
        for ignored in others:
            self._warn(
                number,
                f"pip ignores {ignored[:60]} behind an option: write it on a line of its own.",
            )

    def _option(self, number: int, given: Option, waiting: list[tuple[str, str]]) -> None:
        option, value = given.name, given.value
        if given.kind in ("r", "c"):
            self._other_file(number, value, waiting, is_constraint=given.kind == "c")
        elif given.kind in ("e", "f"):
            self._place(number, value, is_package=given.kind == "e", is_editable=given.kind == "e")
        elif option in BEHIND:
            self._warn(number, f"pip ignores {option} without a requirement before it.")
        elif option not in WITH_VALUE and option not in ALONE:
            self._wrong(
                number, f"{short(option)} is no option of a requirements file", "Leave it out."
            )
        elif (option in WITH_VALUE) != bool(value):
            problem = "needs a value" if option in WITH_VALUE else "takes no value"
            self._wrong(number, f"{option} {problem}", "Write it as pip's documentation has it.")
        elif option == "--require-hashes":
            self.wants_hashes = True

    def _other_file(
        self, number: int, name: str, waiting: list[tuple[str, str]], *, is_constraint: bool
    ) -> None:
        self.has_constraints |= is_constraint
        if _URL.match(name) and not name.startswith("file:"):
            return
        if self._is_file_url(number, name):
            return
        path = self._own_path(number, name)
        if path is None or path in self.seen or not self._require(number, path):
            return
        text = self.folder.read(path) if self.folder is not None else None
        if text is None and not self.is_final:
            return
        if text is None:
            self._wrong(number, f"{short(name)} cannot be read", "Name a small text file.")
        elif len(self.seen) + len(waiting) >= MAX_FILES:
            self._wrong(number, "is one file too many", f"Use at most {MAX_FILES}.")
        else:
            waiting.append((path, text))

    def _is_file_url(self, number: int, name: str) -> bool:
        """Tell of `file:` before a path of the step: pip looks for that path below /."""
        path = name.removeprefix("file:")
        if path == name or path.startswith("/"):
            return False
        hint = f"Write {path if path.startswith('.') else './' + path}."
        self._wrong(number, f"{short(name)} is a path with file: before it", hint)
        return True

    def _place(
        self, number: int, value: str, *, is_package: bool, is_editable: bool = False
    ) -> None:
        """Check what `-e` and `-f` name: a place elsewhere, or a folder or archive of the step."""
        if _VCS.match(value) or (is_editable and value.startswith("git:")):
            self._vcs(number, value)
            if is_editable and not re.search(r"[#&]egg=[^&]", value):
                self._wrong(number, f"{short(value)} has no name", f"Write {value}#egg=name.")
        elif not _URL.match(value) or value.startswith("file:"):
            if not is_editable and self._is_file_url(number, value):
                return
            place = value.partition("[")[0] if is_editable else re.split(r"[\[;#]", value)[0]
            path = self._own_path(number, place.strip())
            if path is None or not self._require(number, path) or not is_package:
                return
            if self.is_final and not self._is_package(path):
                self._wrong(
                    number,
                    f"names {short(path)}, a folder without {' or '.join(_PROJECT)}",
                    "Name a folder that pip can install, or leave the line out.",
                )
            elif self.is_final and self._kind_of(path) == "file":
                self._archive(number, path)
        elif is_package:
            self._url(number, value)

    def _url(self, number: int, value: str) -> None:
        if value.split(":")[0] not in _SCHEMES:
            hint = "Write git+https://…, or an address that begins with https://."
            self._wrong(number, f"{short(value)} is no address that pip takes", hint)
            return
        path = unquote(urlsplit(value).path)
        if path.endswith(".whl"):
            self._archive(number, path)

    def _archive(self, number: int, path: str) -> None:
        """Check the name of an archive: of a wheel, pip reads the version and more from it."""
        name = posixpath.basename(path)
        if not name.lower().endswith(_ARCHIVES):
            hint = f"Write -r {path}." if name.endswith((".txt", ".in")) else "Name its folder."
            self._wrong(number, f"{short(name)} is no archive that pip installs", hint)
        elif name.endswith(".whl") and not _WHEEL.fullmatch(name):
            hint = "Name it as it was built, such as name-1.0-py3-none-any.whl."
            self._wrong(number, f"{short(name)} is not the name of a wheel", hint)

    def _requirement(self, number: int, line: str) -> None:
        if line.endswith("\\"):
            self._wrong(number, "has a blank behind its last \\", "Remove the blank.")
            return
        words, options = before_options(line)
        for option, value in options:
            if option == "--hash":
                self._hash(number, value)
            if option in GENERAL:
                self._warn(
                    number,
                    f"pip ignores {option} behind a requirement: write it on a line of its own.",
                )
            elif option in SETTINGS:
                self._warn(number, f"pip takes {option} here from 23.1 on, and Debian 12 has 23.0.")
            elif option not in BEHIND:
                self._wrong(
                    number, f"{short(option)} is no option of a requirement", "Leave it out."
                )
        self._note_hash(number, words, options)
        if match := _SSH.fullmatch(words):
            self._wrong(
                number,
                f"{short(words)} is no address that pip takes",
                f"Write git+https://{match['host']}/{match['path']}.",
            )
        elif _VCS.match(words):
            self._vcs(number, words)
        elif _URL.match(words) and not words.startswith("file:"):
            self._url(number, words)
        elif _is_local(words):
            self._place(number, words, is_package=True)
        else:
            self._named(number, words)

    def _hash(self, number: int, value: str) -> None:
        kind, _, digits = value.partition(":")
        if kind not in _HASHES:
            wanted = ", ".join(_HASHES)
            self._wrong(
                number, f"--hash {short(value)} is none that pip takes", f"Write one of {wanted}."
            )
        elif len(digits) != _HASHES[kind] or not _HEXADECIMAL.fullmatch(digits):
            self._wrong(
                number,
                f"--hash {short(value)} is not a {kind}",
                f"Write its {_HASHES[kind]} hexadecimal digits.",
            )

    def _note_hash(self, number: int, words: str, options: list[tuple[str, str]]) -> None:
        """Note a requirement without a hash; one under a condition may be none."""
        has_hash = any(option == "--hash" for option, _ in options)
        self.wants_hashes |= has_hash
        if not has_hash and ";" not in words and "#sha" not in words:
            self.without_hash.append((self.file_name, number, words))

    def hashes(self) -> None:
        """Raise `BadDescription` if some requirements have hashes, and others none.

        What a file of constraints says of a hash counts as well.
        """
        if not self.wants_hashes or self.has_constraints or not self.without_hash:
            return
        name = self.without_hash[0][0]
        raise_all(
            (
                Problem(
                    number,
                    f"{short(words)} has no --hash, which pip wants of all where one has it",
                    "Write its hash behind it, or leave all hashes out.",
                )
                for file, number, words in self.without_hash
                if file == name
            ),
            name,
        )

    def _named(self, number: int, words: str) -> None:
        if len(words) > (_MAX_URL if "://" in words else MAX_ENTRY):
            self._wrong(number, f"{short(words)} is very long", "Write name==version.")
            return
        if problem := requirement_problem(words):
            self._wrong(number, *problem)
            return
        requirement = Requirement(words)
        self.packages.append((self.file_name, number, canonicalize_name(requirement.name)))
        url = requirement.url or ""
        if _VCS.match(url):
            self._vcs(number, url)
        elif url.startswith("file:"):
            self._place(number, url, is_package=True)
        elif _URL.match(url):
            self._url(number, url)
        elif url:
            path = url if url.startswith(".") else f"./{url}"
            self._wrong(number, f"{short(words)} names a path behind @", f"Write {path} alone.")

    def _vcs(self, number: int, url: str) -> None:
        if re.match(r"[a-z]+\+file:", url):
            self._wrong(
                number, f"names {short(url)}, a path of another machine", "Write git+https://…."
            )
        if "ssh://" in url or re.match(r"[a-z]+\+[^/]*@", url):
            self._warn(number, "a build has no SSH key: write git+https://.")
        package = _CLIENTS.get(url.partition("+")[0])
        if package is not None and package not in self.apt:
            self._warn(number, f"pip fetches {short(url)} with {package}: add it under apt.")

    def _require(self, number: int, path: str) -> bool:
        """Return whether a path is the step's, or may be when pip runs."""
        self.in_step = True
        if not self.is_final or self._kind_of(path) is not None:
            return True
        self._wrong(
            number,
            f"names {short(path)}, which the step does not have",
            "Add it to the step's folder, or leave the line out.",
        )
        return False

    def _kind_of(self, path: str) -> str | None:
        if path == ".":
            return "folder"
        return self.folder.kind_of(path) if self.folder is not None else None

    def _is_package(self, path: str) -> bool:
        """Return whether pip can install this: a file, or a folder with a build's files."""
        places = (posixpath.normpath(posixpath.join(path, name)) for name in _PROJECT)
        return self._kind_of(path) == "file" or any(map(self._kind_of, places))

    def _own_path(self, number: int, name: str) -> str | None:
        """Return a path below the step's folder, as pip finds it from the file that names it."""
        if name.startswith("file:"):
            name = re.sub(r"file:(?://(?:localhost)?(?=/))?", "", name)
        if not name:
            self._wrong(number, "names no file", "Write a path in the step's folder.")
            return None
        if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name):
            self._wrong(
                number,
                f"names {short(name)}, a path of another machine",
                "Write name==version, or a path in the step's folder.",
            )
            return None
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self.file_name), name))
        if path.startswith(".."):
            self._wrong(
                number,
                f"names {short(name)}, which is outside of the step's folder",
                "Put it into the step's folder.",
            )
            return None
        return path


def _is_conda(text: str) -> bool:
    return any(_CONDA.match(line) for line in text.splitlines()[:50])


def _is_local(words: str) -> bool:
    """Return whether pip takes a requirement for a folder or an archive."""
    name = re.split(r"[\[;]", words)[0].strip()
    if name.startswith((".", "/", "file:", "~")) or "\\" in name:
        return True
    if " @ " in words or "@" in name.split("/")[0]:
        return False
    return "/" in name or name.lower().endswith(_ARCHIVES)
