"""No pattern takes more than linear time: strangers' texts reach most of them.

A pattern that backtracks over a long text holds the interpreter, and with it a whole process. Each
pattern is run, in the ways in which its module uses it, on texts made of its own characters. CPU
time is counted, not time: a linear pattern needs a few milliseconds of it, a quadratic one seconds.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import signal
from collections.abc import Iterator
from re import _constants as parts  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import pytest

import image_builder
import service
from image_builder.build.failures import buildx_log, spack_concretize
from image_builder.data import facts_of
from image_builder.recipe import slim_facts, system_conflicts
from image_builder.request import build_request, machines
from image_builder.sources.git import urls
from image_builder.spack import prefixes

LENGTH = 120_000
LIMIT_CPU_S = 2.0
ANCHORED = frozenset({"match", "fullmatch"})
SEARCHING = frozenset({"search", "sub", "split", "findall", "finditer", "subn"})
IN_THE_IMAGE = "image_builder.recipes"
BOUNDED = {
    "image_builder.hints.": 2000,
    "image_builder.build.failures.": buildx_log.MAX_LINE,
    "image_builder.recipe.slim_facts.": slim_facts.MAX_LINE,
    "image_builder.request.build_request.": build_request.MAX_TEXT,
}
"""Modules whose patterns see at most so many characters: `plain` cuts a log's lines, and `_checked`
looks at the length first.
"""


pytestmark = pytest.mark.slow


def _of_files() -> list[str]:
    """The patterns for names and contents of an image's files."""
    facts = facts_of("elf_facts")
    mpi, pmi = facts["mpi"], facts["pmi"]
    return [
        *facts["files"].values(),
        mpi["own"],
        *(kind[key] for kind in mpi["kinds"] for key in ("text", "version")),
        facts["glibc"],
        *pmi["texts"],
        *pmi["plugins"],
        *(pmi[key] for key in ("own_client", "embedded", "release")),
        *(network["plugins"] for network in facts["networks"].values()),
        *facts["programs"].values(),
        *facts["cuda"].values(),
    ]


MADE_AT_RUN_TIME: dict[str, tuple[str, list[str]]] = {
    "image_builder.audit.image_facts.naming": ("search", _of_files()),
    "image_builder.request.machines": (
        "match",
        [rf"(?:{pattern})\Z" for pattern, _ in machines._LISTS.values()],
    ),
    "image_builder.hints": ("search", [row["says"] for row in facts_of("hints")["signs"]]),
    "image_builder.request.gpu_arch": (
        "match",
        [runtime["pattern"] for runtime in facts_of("gpus")["runtimes"].values()],
    ),
    "image_builder.recipe.system_conflicts": ("match", list(system_conflicts._OF_DEBIAN.values())),
    "image_builder.build.failures.classify": ("search", ["Cannot connect to the Docker daemon"]),
    "image_builder.build.failures.spack_concretize": (
        "search",
        [spack_concretize._NO_VERSION, rf"\s+({prefixes.NAME})@"],
    ),
    "image_builder.sources.git.urls": ("match", [urls._USER + r"\Z"]),
    "image_builder.proof.spack_sources": ("search", [r"(?<![0-9.])1\.2\.3(?!\.?[0-9])"]),
}
"""Patterns that no name of a module holds: made of facts in files, or in a function."""


class Use(NamedTuple):
    """A pattern, and the methods by which its module uses it."""

    name: str
    pattern: re.Pattern[str]
    methods: frozenset[str]


def modules() -> Iterator[Any]:
    for package in (image_builder, service):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not info.name.startswith(IN_THE_IMAGE):
                yield importlib.import_module(info.name)


def uses() -> Iterator[Use]:
    for module in modules():
        with open(module.__file__, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        for name, value in vars(module).items():
            for at, pattern in enumerate(_patterns(value)):
                if methods := _methods(tree, name):
                    yield Use(f"{module.__name__}.{name}[{at}]", pattern, methods)
        yield from _inline(module.__name__, tree)
        method, made = MADE_AT_RUN_TIME.get(module.__name__, ("", []))
        for pattern in made:
            name = f"{module.__name__}.run-time:{pattern[:40]}"
            yield Use(name, re.compile(pattern), frozenset({method}))


def _patterns(value: object) -> list[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        pattern = value.pattern
        return [value if isinstance(pattern, str) else _as_text(value)]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return [pattern for one in value for pattern in _patterns(one)]
    return []


def _as_text(pattern: re.Pattern[bytes]) -> re.Pattern[str]:
    flags = pattern.flags & ~re.UNICODE
    return re.compile(pattern.pattern.decode("latin-1"), flags | re.ASCII)


def _methods(tree: ast.Module, name: str) -> frozenset[str]:
    """How a module uses a pattern of this name; one that is handed on may be used for a search."""
    found: set[str] = set()
    called: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == name and node.attr in ANCHORED | SEARCHING:
                found.add("match" if node.attr in ANCHORED else "search")
            called.add(node.value)
    handed_on = any(
        isinstance(node, ast.Name)
        and node.id == name
        and isinstance(node.ctx, ast.Load)
        and node not in called
        for node in ast.walk(tree)
    )
    return frozenset(found | ({"search"} if handed_on else set()))


def _inline(module: str, tree: ast.Module) -> Iterator[Use]:
    """`re.match(r"…", text)` and its kin."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in ANCHORED | SEARCHING
            and isinstance(node.args[0], ast.Constant)
        ):
            method = "match" if node.func.attr in ANCHORED else "search"
            pattern = node.args[0].value
            name = f"{module}:{pattern[:40]}"
            yield Use(name, re.compile(pattern), frozenset({method}))


def characters(pattern: re.Pattern[str]) -> list[str]:
    """Characters that a pattern names, and some that its classes hold."""
    found: dict[str, None] = {}

    def visit(value: Any) -> None:
        if isinstance(value, parser.SubPattern | list | tuple):
            items = list(value)
            if len(items) == 2 and items[0] is parts.LITERAL:
                found[chr(items[1])] = None
            elif len(items) == 2 and items[0] is parts.RANGE:
                found[chr(items[1][0])] = None
            elif len(items) == 2 and items[0] is parts.CATEGORY:
                found[{"SPACE": " ", "DIGIT": "0"}.get(str(items[1]).rpartition("_")[2], "a")] = (
                    None
                )
            else:
                for item in items:
                    visit(item)

    visit(parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE & ~re.DEBUG))
    return list({**found, " ": None, "a": None, "0": None})


def prefix_of(pattern: re.Pattern[str]) -> str:
    """The literal characters that a pattern begins with."""
    text = ""
    for kind, value in parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE & ~re.DEBUG):
        if kind is not parts.LITERAL:
            break
        text += chr(value)
    return text


def texts(pattern: re.Pattern[str], length: int) -> Iterator[str]:
    letters = characters(pattern)[:8]
    prefix = prefix_of(pattern)
    for letter in letters:
        yield prefix + letter * length + "\x01"
        yield prefix + f"{letter}a" * (length // 2) + "\x01"
    yield ("".join(letters) * (length // len(letters) + 1))[:length] + "\x01"
    yield prefix * (length // max(1, len(prefix))) + "\x01"


class Exceeded(Exception):
    """A pattern took more CPU time than a linear one ever does."""


def _exceeded(signal_number: int, frame: object) -> None:
    raise Exceeded


def longest(name: str) -> int:
    """The longest text that a pattern is run on."""
    return next((bound for begin, bound in BOUNDED.items() if name.startswith(begin)), LENGTH)


def slow_text(use: Use, length: int) -> str | None:
    """The beginning of a text on which the pattern takes too long, or None."""
    before = signal.signal(signal.SIGVTALRM, _exceeded)
    try:
        for text in texts(use.pattern, length):
            signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_CPU_S)
            try:
                if "match" in use.methods:
                    use.pattern.match(text)
                if "search" in use.methods:
                    use.pattern.findall(text)
            except Exceeded:
                return text[:40]
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, before)
    return None


def test_every_pattern_is_linear() -> None:
    found = list(uses())
    assert len(found) > 80, "patterns are found"
    slow = {
        use.name: (use.pattern.pattern[:80], text)
        for use in found
        if (text := slow_text(use, longest(use.name))) is not None
    }
    assert not slow


def test_no_pattern_is_passed_over() -> None:
    """What is compiled in a function, or is no constant, is in `MADE_AT_RUN_TIME`."""
    passed_over = set()
    for module in modules():
        with open(module.__file__, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        named = {
            id(node)
            for statement in tree.body
            if isinstance(statement, ast.Assign | ast.AnnAssign)
            for node in ast.walk(statement)
        }
        if any(_is_made_at_run_time(node, named) for node in ast.walk(tree)):
            passed_over.add(module.__name__)
    assert passed_over == set(MADE_AT_RUN_TIME)


def _is_made_at_run_time(node: ast.AST, named: set[int]) -> bool:
    if not (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
    ):
        return False
    if node.func.attr == "compile":
        return id(node) not in named
    return node.func.attr in ANCHORED | SEARCHING and not isinstance(node.args[0], ast.Constant)


@pytest.mark.parametrize(
    "pattern",
    [r"a\s*(?:\[)?\s*(?:;.+)?\Z", r"\s*(?:[^#;]*@\s*file:|x)", r"(?:a+)+\Z", r"[a-z]*[a-z]*b"],
)
def test_the_check_finds_patterns_that_are_not(pattern: str) -> None:
    use = Use("bad", re.compile(pattern), frozenset({"match", "search"}))
    assert slow_text(use, LENGTH) is not None
