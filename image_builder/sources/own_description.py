"""Reads what a request describes itself, in place of a step of the registry. Pure.

It becomes a step with one file, `eflows4hpc.yaml`, whose text is the same for the same description:
so it has the tree, and with the same name the identity, of a registry's step that holds this file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from image_builder.errors import BadDescription, FieldProblem, InvalidRequest
from image_builder.host.cancellation import CancelToken
from image_builder.request import again
from image_builder.request.again import KeptFields
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import NamedMachine, load_json, parse_request
from image_builder.sources import safe_yaml, spack_section
from image_builder.sources.checking import Check, dotted
from image_builder.sources.description import KEYS, check_description
from image_builder.sources.git import trees
from image_builder.sources.git.trees import Entry
from image_builder.sources.safe_yaml import Document
from image_builder.sources.step import DESCRIPTIONS, StepFiles, StepRef, step_files
from image_builder.spack import lock_check

FILE = DESCRIPTIONS[0]
MAX_PROBLEMS = 50
MAX_KEY = 200
_PLAIN = re.compile(r"[A-Za-z0-9$][A-Za-z0-9 _.,+~@=%^:/()<>!$-]*\Z")
_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")
"""Line ends of YAML that JSON takes for characters like others."""


def parse_any_request(
    raw: bytes | str | Mapping[str, Any],
    *,
    allow_path: bool = False,
    machines: Mapping[str, NamedMachine] | None = None,
    kept: KeptFields | None = None,
) -> BuildRequest:
    """Return a request from JSON, which may describe what is built. See `parse_request`.

    With `kept`, it may name a finished build in `from_lock`, and leave out what its request had.
    """

    def parse(fields: Mapping[str, Any], is_of_path: bool = False) -> BuildRequest:
        return parse_request(
            fields,
            allow_path=allow_path or is_of_path,
            machines=machines,
            check_own=description_problems,
        )

    fields = raw if isinstance(raw, Mapping) else load_json(raw)
    if again.names_build(fields):
        return again.parse_again(fields, kept, parse)
    lock = fields.get(again.FIELD)
    if isinstance(lock, Mapping) and (wrong := lock_check.problems(lock)):
        hint = "bring the spack.lock as Spack wrote it"
        raise InvalidRequest([FieldProblem(again.FIELD, one, hint) for one in wrong])
    return parse(fields)


def description_problems(fields: Mapping[str, Any]) -> list[FieldProblem]:
    """Return what is wrong with `description` or `packages` of a request, by places in the JSON."""
    packages = fields.get("packages")
    if fields.get("description") is not None:
        return _problems("description", fields["description"])
    if not isinstance(packages, list) or not packages:
        hint = 'write Spack specs, such as ["hdf5+mpi", "fftw"]'
        return [FieldProblem("packages", "must be a list of specs", hint)]
    return _problems("packages", _of_packages(packages))


def own_text(request: BuildRequest) -> str:
    """Return the `eflows4hpc.yaml` that a request's own description is.

    Its top-level keys are in the order of the documentation, all else as it is written; lists are
    indented by two blanks, and only what needs quotes has them.
    """
    if request.description is not None:
        return canonical_text(request.description)
    return canonical_text(_of_packages(request.packages or []))


def own_step(request: BuildRequest) -> StepRef:
    """Return the step that a request describes, pinned by the tree of its one file."""
    text = own_text(request)
    return StepRef(
        workflow=request.workflow_name,
        step_id=request.step_name,
        version=request.version,
        tree=trees.tree_digest([_entry(text)]),
        text=text,
    )


def read_own(step: StepRef) -> StepFiles:
    """Return the files of a step that a request describes: its description alone."""
    assert step.text is not None
    return step_files({FILE: step.text.encode()}, lambda _: True, lambda content: content)


def write_own(step: StepRef, destination: Path, cancel: CancelToken | None = None) -> None:
    """Write the folder of a step that a request describes."""
    assert step.text is not None
    content = step.text.encode()
    trees.write([_entry(step.text)], destination, lambda _: [content], cancel)


def canonical_text(description: Mapping[str, Any]) -> str:
    """Return the one YAML text of a description; `safe_yaml` reads the same values from it."""
    known = [key for key in KEYS if key in description]
    others = [key for key in description if key not in KEYS]
    ordered = {key: description[key] for key in (*known, *others)}
    return "".join(f"{line}\n" for line in _lines(ordered)) if ordered else "{}\n"


class _FieldCheck(Check):
    """Collects problems with their places in the request's JSON."""

    def __init__(self, document: Document, field: str) -> None:
        super().__init__(document, FILE)
        self._field = field
        self.found: list[FieldProblem] = []

    def wrong(self, path: safe_yaml.Path, problem: str, hint: str) -> None:
        self.found.append(FieldProblem(_place(self._field, path), problem, hint))


def _problems(field: str, description: Any) -> list[FieldProblem]:
    if not isinstance(description, dict):
        hint = 'write an object such as {"spack": {"specs": ["fftw"]}}'
        return [FieldProblem(field, "must be an object", hint)]
    if odd := next(_odd_parts(description), None):
        path, problem, hint = odd
        return [FieldProblem(_place(field, path), problem, hint)]
    text = canonical_text(description)
    try:
        document = spack_section.with_single_colons(safe_yaml.load(text, FILE), FILE)
    except BadDescription as error:
        return [FieldProblem(field, error.message.partition(": ")[2], error.hint)]
    check = _FieldCheck(document, field)
    check_description(check, text)
    return check.found[:MAX_PROBLEMS]


def _odd_parts(description: Any) -> Iterator[tuple[safe_yaml.Path, str, str]]:
    """Yield what no check of a description has to see: what is too deep, too much or no YAML."""
    waiting: list[tuple[safe_yaml.Path, Any]] = [((), description)]
    values = size = 0
    while waiting:
        path, value = waiting.pop()
        values += 1
        inner: list[tuple[str | int, Any]] = []
        if isinstance(value, dict):
            inner = list(value.items())
        elif isinstance(value, list):
            inner = list(enumerate(value))
        texts = [value] if isinstance(value, str) else [key for key, _ in inner]
        size += sum(len(text) for text in texts if isinstance(text, str))
        if values > safe_yaml.MAX_VALUES or size > safe_yaml.MAX_BYTES:
            yield (), "is too large", "keep only what the image needs"
            return
        if len(path) >= safe_yaml.MAX_DEPTH:
            yield (
                path[:4],
                f"is nested deeper than {safe_yaml.MAX_DEPTH} levels",
                "write it flatter",
            )
            return
        if isinstance(value, float) and not math.isfinite(value):
            yield path, "is not a number", "write a number that is finite"
        for text in texts:
            yield from _odd_text(path, text, is_key=bool(inner))
        waiting += [((*path, key), one) for key, one in inner]


def _odd_text(
    path: safe_yaml.Path, text: Any, *, is_key: bool
) -> Iterator[tuple[safe_yaml.Path, str, str]]:
    if not isinstance(text, str):
        return
    odd = safe_yaml.odd_character(text) or next(
        (f"U+{ord(found):04X}" for found in _BREAKS.findall(text)), None
    )
    if odd:
        yield path, f"holds the character {odd}", "write plain text"
    if is_key and len(text) > MAX_KEY:
        yield path, f"has a key of more than {MAX_KEY} characters", "write a shorter one"


def _place(field: str, path: safe_yaml.Path) -> str:
    """Return a place in the request's JSON, such as `description.spack.specs[0]`."""
    if field == "packages":  # short for description.spack.specs
        path = path[2:]
    shown = dotted(path).rstrip(" ").encode("unicode_escape").decode("ascii")
    return f"{field}{'' if shown.startswith('[') or not shown else '.'}{shown}"


def _of_packages(packages: list[Any]) -> dict[str, Any]:
    return {"spack": {"specs": packages}}


def _entry(text: str) -> Entry:
    content = text.encode()
    return Entry(path=FILE, mode=trees.FILE, digest=trees.blob_digest(content), size=len(content))


def _lines(value: Any) -> list[str]:
    """Return the lines of a mapping or list in YAML's block style."""
    lines: list[str] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict | list) and inner:
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in _lines(inner))]
            else:
                lines.append(f"{_scalar(key)}: {_scalar(inner)}")
        return lines
    for inner in value:
        nested = _lines(inner) if isinstance(inner, dict | list) and inner else [_scalar(inner)]
        lines += [f"- {nested[0]}", *(f"  {line}" for line in nested[1:])]
    return lines


def _scalar(value: Any) -> str:
    """Return a value without parts in YAML: as JSON writes it, or a text that needs no quotes."""
    if not isinstance(value, str):
        return json.dumps(value)
    is_plain = (
        _PLAIN.match(value) is not None
        and ": " not in value
        and not value.endswith((":", " "))
        and safe_yaml.is_plain_text(value)
    )
    return value if is_plain else json.dumps(value, ensure_ascii=False)
