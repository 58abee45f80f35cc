"""Reads `requirements.txt` as pip does: what it names, or every line that is wrong. Pure.

pip reads it only after Spack has built for hours, so everything that pip would refuse is refused here.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import shlex
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from image_builder.errors import BadDescription
from image_builder.sources.entries import MAX_ENTRY, requirement_problem, short
from image_builder.sources.problems import Problem, raise_all
from image_builder.sources.step import StepFolder

FILE = "requirements.txt"
MAX_LINES = 5000
MAX_LINE = 16_000
MAX_FILES = 20
"""The most requirements files that a step's file may name, directly or through others."""
_MAX_URL = 2000
_PROJECT = ("pyproject.toml", "setup.py")
_COMMENT = re.compile(r"(?:^|\s)#")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tar")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_VCS = re.compile(r"(?:git|hg|svn|bzr)\+")
_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")
_FILES = {"-r": "-r", "--requirement": "-r", "-c": "-c", "--constraint": "-c"}
_PLACES = {"-f": "-f", "--find-links": "-f", "-e": "-e", "--editable": "-e"}
_WITH_VALUE = ("-i", "--index-url", "--extra-index-url", "--trusted-host", "--no-binary",
               "--only-binary", "--use-feature", "--pypi-url")  # fmt: skip
_ALONE = ("--no-index", "--pre", "--prefer-binary", "--require-hashes")
_BEHIND = ("--hash", "--global-option", "--config-settings", "--config-setting", "-C")
_CONDA = re.compile(r"(?:name|channels|dependencies|prefix):|# This file may be used to create an")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
    """Holds a step's requirements; `names` are the packages of the first file with their lines.

    `in_step` says that they name files of the step, and pip has to run in its folder.
    """

    text: str
    names: tuple[tuple[int, str], ...] = ()
    in_step: bool = False
    warnings: tuple[str, ...] = ()


def read_requirements(
    text: str, folder: StepFolder | None, *, is_final: bool = True
) -> Requirements | None:
    """Return what `requirements.txt` names; None if it is empty.

    Whether the step has a file is not checked without `folder`, or if it is not final: a script of
    the step may add files before pip runs. Raises `BadDescription` with every wrong line.
    """
    if not text.strip():
        return None
    reader = _Reader(folder, is_final)
    reader.file(FILE, text)
    return Requirements(
        text=text,
        names=tuple(reader.names),
        in_step=reader.in_step,
        warnings=tuple(reader.warnings),
    )


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its number as pip reads it: joined, and without comments."""
    parts: list[str] = []
    first = 1
    for number, line in enumerate(text.splitlines(), 1):
        is_comment = line.lstrip().startswith("#")
        if not parts:
            first = number
        if line.endswith("\\") and not is_comment:
            parts.append(line[:-1])
            continue
        whole = "".join([*parts, f" {line}" if is_comment and parts else line])
        parts = []
        if cut := _cut(whole):
            yield first, cut
    if parts and (cut := _cut("".join(parts))):
        yield first, cut


def _cut(line: str) -> str:
    comment = _COMMENT.search(line)
    return (line[: comment.start()] if comment else line).strip()


class _Reader:
    """Reads one requirements file and those that it names."""

    def __init__(self, folder: StepFolder | None, is_final: bool) -> None:
        self.folder = folder
        self.is_final = is_final and folder is not None
        self.names: list[tuple[int, str]] = []
        self.warnings: list[str] = []
        self.seen: set[str] = set()
        self.problems: list[Problem] = []
        self.file_name = FILE
        self.in_step = False

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
        option, value = _option(line)
        if option in _FILES:
            self._other_file(number, value, waiting)
        elif option in _PLACES:
            self._place(number, value, is_package=option in ("-e", "--editable"))
        elif option not in _WITH_VALUE and option not in _ALONE:
            self._wrong(
                number, f"{short(option)} is no option of a requirements file", "Leave it out."
            )
        elif (option in _WITH_VALUE) != bool(value):
            problem = "needs a value" if option in _WITH_VALUE else "takes no value"
            self._wrong(number, f"{option} {problem}", "Write it as pip's documentation has it.")

    def _other_file(self, number: int, name: str, waiting: list[tuple[str, str]]) -> None:
        if _URL.match(name) and not name.startswith("file:"):
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

    def _place(self, number: int, value: str, *, is_package: bool) -> None:
        """Check what `-e` and `-f` name: a place elsewhere, or a folder or archive of the step."""
        if _VCS.match(value):
            self._vcs(number, value)
        elif not _URL.match(value) or value.startswith("file:"):
            path = self._own_path(number, re.split(r"[\[;#]", value)[0].strip())
            if path is None or not self._require(number, path) or not is_package:
                return
            if self.is_final and not self._is_package(path):
                self._wrong(
                    number,
                    f"names {short(path)}, a folder without {' or '.join(_PROJECT)}",
                    "Name a folder that pip can install, or leave the line out.",
                )

    def _requirement(self, number: int, line: str) -> None:
        words, options = _before_options(line)
        for option in options:
            if option.partition("=")[0] not in _BEHIND:
                self._warn(
                    number,
                    f"pip ignores {option.partition('=')[0]} behind a requirement: write it on a "
                    "line of its own.",
                )
        if _VCS.match(words):
            self._vcs(number, words)
        elif _URL.match(words) and not words.startswith("file:"):
            return
        elif _is_local(words):
            self._place(number, words, is_package=True)
        else:
            self._named(number, words)

    def _named(self, number: int, words: str) -> None:
        if len(words) > (_MAX_URL if "://" in words else MAX_ENTRY):
            self._wrong(number, f"{short(words)} is very long", "Write name==version.")
            return
        if problem := requirement_problem(words):
            self._wrong(number, *problem)
            return
        requirement = Requirement(words)
        if self.file_name == FILE:
            self.names.append((number, canonicalize_name(requirement.name)))
        url = requirement.url or ""
        if _VCS.match(url):
            self._vcs(number, url)
        elif url.startswith("file:") or (url and not _URL.match(url)):
            self._place(number, url, is_package=True)

    def _vcs(self, number: int, url: str) -> None:
        if "ssh://" in url or re.match(r"[a-z]+\+[^/]*@", url):
            self._warn(number, "a build has no SSH key: write git+https://.")

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


def _option(line: str) -> tuple[str, str]:
    """Return an option and its value; `-r x`, `-rx` and `--requirement=x` are the same."""
    word = line.split(None, 1)[0]
    if line.startswith("--"):
        option, equals, value = word.partition("=")
        rest = line[len(word) :].strip()
        return option, _unquoted(value if equals else rest)
    return line[:2], _unquoted(line[2:].strip().removeprefix("="))


def _unquoted(value: str) -> str:
    if value[:1] not in "'\"":
        return value
    try:
        return " ".join(shlex.split(value))
    except ValueError:
        return value


def _before_options(line: str) -> tuple[str, list[str]]:
    """Return a requirement without the options behind it, and those options."""
    words = line.split(" ")
    for at, word in enumerate(words):
        if word.startswith("-"):
            return " ".join(words[:at]).strip(), [one for one in words[at:] if one.startswith("-")]
    return line, []


def _is_local(words: str) -> bool:
    """Return whether pip takes a requirement for a folder or an archive."""
    name = re.split(r"[\[;]", words)[0].strip()
    if name.startswith((".", "/", "file:", "~")) or "\\" in name:
        return True
    if " @ " in words or "@" in name.split("/")[0]:
        return False
    return "/" in name or name.lower().endswith(_ARCHIVES)
