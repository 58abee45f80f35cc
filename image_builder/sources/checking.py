"""Collects what is wrong with one document, with the checks that its sections share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from image_builder.request import cpu_targets
from image_builder.sources.problems import Problem, raise_all
from image_builder.sources.safe_yaml import Document, Path
from image_builder.spack import spec as spack_spec

MAX_ENTRIES = 1000
_ONE_A_LINE = "Write each entry on a line that begins with '- '."
ProblemOf = Callable[[str], tuple[str, str] | None]


class Check:
    """Collects all problems of one document, with lines; `warnings` do not refuse it."""

    def __init__(self, document: Document, file: str) -> None:
        self.document = document
        self.file = file
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def wrong(self, path: Path, problem: str, hint: str) -> None:
        self.problems.append(Problem(self.document.line(path), f"{dotted(path)}{problem}", hint))

    def warn(self, path: Path, text: str) -> None:
        self.warnings.append(f"{self.file}, line {self.document.line(path)}: {text}")

    def raise_problems(self) -> None:
        raise_all(self.problems, self.file)

    def mapping(self, path: Path, value: Any) -> Mapping[str, Any]:
        if value is None or isinstance(value, dict):
            return value or {}
        self.wrong(
            path,
            f"must be a mapping, not {kind(value)}",
            "Write keys with a colon, and their values below.",
        )
        return {}

    def known(
        self, path: Path, fields: Mapping[str, Any], known: Sequence[str], why: Mapping[str, str]
    ) -> None:
        """Refuse every unknown key; `why` says what to write instead of some."""
        for key in fields:
            if key not in known:
                close = cpu_targets.nearest(key, known, 1)
                if key[:-1] in known and key[-1] in "+-":
                    why = {key: f"Write one plain colon: {key[:-1]}:"} | dict(why)
                hint = f"Did you mean {close[0]}?" if close else f"Allowed are {', '.join(known)}."
                self.wrong((*path, key), "is not allowed here", why.get(key) or hint)

    def list(self, path: Path, value: Any) -> list[Any]:
        if not isinstance(value, list):
            self.wrong(path, f"must be a list, not {kind(value)}", _ONE_A_LINE)
            return []
        if len(value) > MAX_ENTRIES:
            self.wrong(
                path, f"has more than {MAX_ENTRIES} entries", "Keep only what the step needs."
            )
            return []
        return value

    def entries(self, path: Path, value: Any, problem_of: ProblemOf) -> tuple[str, ...] | None:
        """Return a list of checked texts; None if there is nothing."""
        if value is None or not isinstance(value, list):
            return None if value is None else tuple(self.list(path, value)) or None
        return tuple(
            self._entry((*path, at), entry, problem_of)
            for at, entry in enumerate(self.list(path, value))
        )

    def _entry(self, path: Path, entry: Any, problem_of: ProblemOf) -> str:
        text = entry.strip() if isinstance(entry, str) else ""
        if text:
            problem = problem_of(text)
        elif isinstance(entry, bool | int | float):
            problem = (f"must be a text, not {kind(entry)}", "Put it into quotes, if it is meant.")
        else:
            problem = (f"must be a text, not {kind(entry)}", "Write one name.")
        if problem:
            self.wrong(path, *problem)
        return text

    def flag(self, path: Path, value: Any) -> bool | None:
        if value is not None and not isinstance(value, bool):
            self.wrong(path, f"must be true or false, not {kind(value)}", "Write true or false.")
            return None
        return value

    def choice(self, path: Path, value: Any, known: Sequence[Any]) -> None:
        if not any(value is one or (isinstance(value, str) and value == one) for one in known):
            words = [{True: "true", False: "false"}.get(one, str(one)) for one in known]
            self.wrong(path, "is not known", f"Write {', '.join(words[:-1])} or {words[-1]}.")

    def spec(self, path: Path, value: Any, *, named: bool) -> None:
        if not isinstance(value, str):
            self.wrong(
                path, f"must be a spec, not {kind(value)}", "Write a text such as hdf5@1.14+mpi."
            )
            return
        problem = spack_spec.problem(value.strip(), named=named) or _capitals(value.strip())
        if problem:
            self.wrong(path, *problem)

    def spec_list(self, path: Path, value: Any, *, named: bool) -> None:
        for at, entry in enumerate(self.list(path, value)):
            self.spec((*path, at), entry, named=named)


def kind(value: Any) -> str:
    """Return what a message calls a value of a document, such as `a mapping`."""
    names: dict[type, str] = {
        dict: "a mapping",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "nothing",
    }
    return names[type(value)] if value != "" else "an empty text"


def dotted(path: Path) -> str:
    """Return a place such as `spack.specs[0] `, with which a problem's text begins."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else ("." if text else "") + str(part)[:60]
    return f"{text} " if text else ""


def _capitals(text: str) -> tuple[str, str] | None:
    """Return the problem of a name with capital letters, or None.

    Spack finds packages by their exact names, which have small letters only.
    """
    for node in spack_spec.nodes(text):
        if node.name != node.name.lower():
            return f"names {node.name} in capital letters", f"Write {node.name.lower()}."
    return None
