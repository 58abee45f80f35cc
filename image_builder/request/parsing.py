"""Parses a stranger's JSON to a request, or to one answer that lists all its problems."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pydantic import (
    BaseModel,
    ValidationError,
)

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.request import cpu_targets
from image_builder.request.build_request import (
    BASE,
    LATEST,
    MAX_TEXT,
    BuildRequest,
    short,
)

MAX_EQUAL_KEYS = 20
STEP_FIELDS, OWN_FIELDS = ("workflow", "step_id"), ("description", "packages")
"""The fields that name a step of the registry, and those that describe an image in its place.

With a `folder`, the former are what it is called.
"""
CheckOwn = Callable[[Mapping[str, Any]], list[FieldProblem]]
"""Returns what is wrong with the description in the fields of a request."""


class NamedMachine(Protocol):
    """Is a machine of the catalogue (`machines.MachineEntry`)."""

    def request_fields(self) -> dict[str, Any]:
        """Return the `machine` of a request that names it."""


def expand(fields: Mapping[str, Any], machines: Mapping[str, NamedMachine]) -> dict[str, Any]:
    """Return the fields of a request, with a named machine spelled out.

    A machine is named as `"lumi-c"` or `{"name": "lumi-c"}`. What is written next to the name takes
    precedence over the catalogue; another GPU, or none, drops its architecture. Raises
    `InvalidRequest` for a name that the catalogue does not have.
    """
    machine = fields.get("machine")
    own = {"name": machine} if isinstance(machine, str) else machine
    if not isinstance(own, Mapping) or "name" not in own:
        return dict(fields)
    name = own["name"]
    entry = machines.get(name.strip().lower()) if isinstance(name, str) else None
    if entry is None:
        close = cpu_targets.nearest(name if isinstance(name, str) else "", machines)
        raise InvalidRequest(
            [
                FieldProblem(
                    "machine" if isinstance(machine, str) else "machine.name",
                    f"{short(name)} is not a machine of the catalogue",
                    (f"did you mean {' or '.join(close)}? " if close else "")
                    + "GET /machine/ lists them",
                )
            ]
        )
    known = entry.request_fields()
    if "gpu" in own:
        known.pop("gpu_arch", None)
    return {
        **fields,
        "machine": {**known, **{key: value for key, value in own.items() if key != "name"}},
    }


def parse_request(
    raw: bytes | str | Mapping[str, Any],
    *,
    allow_path: bool = False,
    machines: Mapping[str, NamedMachine] | None = None,
    check_own: CheckOwn | None = None,
) -> BuildRequest:
    """Return a request from a JSON text or from the mapping it holds.

    `allow_path` is for the library; over REST, `path` is refused. With the catalogue `machines`, a
    machine may be named. Without `check_own`, a request must name a step of the registry:
    `sources.own_description.parse_any_request` takes a description as well. Raises
    `InvalidRequest` with every problem.
    """
    fields = dict(raw) if isinstance(raw, Mapping) else load_json(raw)
    problems: list[FieldProblem] = []
    unknown_machine = False
    if machines is not None:
        try:
            fields = expand(fields, machines)
        except InvalidRequest as error:
            problems += error.problems
            unknown_machine = True
    has_repository = fields.get("repository") is not None
    if not allow_path and not has_repository and fields.get("path") is not None:
        problems.append(
            FieldProblem(
                "path",
                "is for the library mode only",
                "leave it out and name a workflow of the registry",
            )
        )
        fields.pop("path")
    wrong = _what_problems(fields, check_own)
    try:
        request = BuildRequest.model_validate(fields)
    except ValidationError as error:
        known = {problem.field for problem in wrong} | ({""} if wrong else set())
        wrong += [
            problem
            for problem in field_problems(error, BuildRequest)
            if not (unknown_machine and problem.field.split(".")[0] == "machine")
            and problem.field not in known
        ]
    problems += sorted(wrong, key=_field_place)
    if problems:
        raise InvalidRequest(problems)
    return request


def _what_problems(fields: Mapping[str, Any], check_own: CheckOwn | None) -> list[FieldProblem]:
    """Return what is wrong with what a request says is to be built."""
    given = {key for key, value in fields.items() if value is not None}
    own = [key for key in OWN_FIELDS if key in given]
    steps = [key for key in STEP_FIELDS if key in given]
    if fields.get("visibility") == "private" and [fields.get(key) for key in STEP_FIELDS] == [
        BASE,
        BASE,
    ]:
        return [FieldProblem("visibility", "base images are for all", "leave it out")]
    missing = [
        FieldProblem(key, "is missing", _example_hint(BuildRequest, [key]))
        for key in STEP_FIELDS
        if key not in given
    ]
    brought = [key for key in (*own, "folder", "repository") if key in given]
    if not brought:
        stray = [FieldProblem("name", "is for what you bring yourself", "leave it out")]
        return missing + (stray if "name" in given else [])
    first = brought[0]
    problems = _not_together(own, steps) if own else []
    if not own and steps:
        problems += missing + [
            FieldProblem(key, f"{BASE} names base images", "choose another name")
            for key in steps
            if fields[key] == BASE
        ]
    if first == "repository":
        problems += _inner_path_problems(fields.get("path"))
    else:
        problems += [
            FieldProblem(key, f"goes with no {first}", "leave it out")
            for key, plain in (("version", LATEST), ("path", None))
            if fields.get(key) not in (None, "", plain)
        ]
    problems += [
        FieldProblem(key, f"stands beside {first}", f"leave {first} or {key} out")
        for key in brought[1:]
        if key not in OWN_FIELDS
    ]
    if "name" in given and steps and not own:
        problems.append(FieldProblem("name", "stands beside workflow and step_id", "leave it out"))
    if not own:
        return problems
    if check_own is None:
        problems.append(FieldProblem(own[0], "is not taken here", "name workflow and step_id"))
        return problems
    return problems + check_own(fields)


def _not_together(own: list[str], steps: list[str]) -> list[FieldProblem]:
    """Return a problem for each field that stands beside another way to say the same."""
    problems = []
    if len(own) > 1:
        problems.append(
            FieldProblem(
                "packages",
                "stands beside description",
                "write these specs below description.spack.specs",
            )
        )
    problems += [
        FieldProblem(
            key,
            f"stands beside {own[0]}",
            f"leave {own[0]} out to build a step of the registry, or leave {key} out",
        )
        for key in steps
    ]
    if steps:
        problems.append(
            FieldProblem(own[0], f"stands beside {' and '.join(steps)}", "leave one of the two out")
        )
    return problems


def _inner_path_problems(path: Any) -> list[FieldProblem]:
    """Return what is wrong with the path of a folder in a repository."""
    if not isinstance(path, str) or not path:
        return []
    if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path:
        hint = "write the folders from the repository's root on, such as flows/solver"
        return [FieldProblem("path", f"{short(path)} is no folder in a repository", hint)]
    return []


def _field_place(problem: FieldProblem) -> int:
    """Return where a problem's field stands in a request; unknown fields come last."""
    known = list(BuildRequest.model_fields)
    field = re.split(r"[.\[]", problem.field, maxsplit=1)[0]
    return known.index(field) if field in known else len(known)


def load_json(raw: bytes | str) -> dict[str, Any]:
    """Return the object in a JSON text; Python's `True`, `False` and `None` are read, too.

    Raises `InvalidRequest` with the place of a syntax error.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise _not_json("the text is not UTF-8", "save it as UTF-8") from None
    if not text.strip():
        raise _not_json("it is empty", "send a JSON object with machine, workflow and step_id")
    try:
        value = json.loads(
            _with_json_constants(text),
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_equal_keys,
        )
    except RecursionError:
        raise _not_json("it is nested too deeply", "send a flat request") from None
    except ValueError as error:
        place = (
            f" (line {error.lineno}, column {error.colno})"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise _not_json(
            f"it is not valid JSON{place}: {getattr(error, 'msg', error)}",
            "check quotes, commas and braces at that place",
        ) from None
    if not isinstance(value, dict):
        raise _not_json("it is not a JSON object", "begin with { and end with }")
    return value


def field_problems(error: ValidationError, model: type[BaseModel]) -> list[FieldProblem]:
    """Return the problems that pydantic found, each with what to write instead."""
    return [_field_problem(dict(detail), model) for detail in error.errors(include_url=False)]


# An unclosed string is one, too: with nothing to go back for, the time stays linear in the text's
# length.
_STRING_OR_WORD = re.compile(r'"(?:[^"\\]+|\\.)*"?|\b(?:True|False|None)\b', re.DOTALL)
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def _without_equal_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys are unique, or refuse it.

    Of two equal keys, JSON's readers silently take the last.
    """
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    counts = Counter(key for key, _ in pairs)
    raise InvalidRequest(
        [
            FieldProblem(
                key if key.isidentifier() and len(key) <= 60 else short(key),
                f"stands {count} times in one object",
                "write it once",
            )
            for key, count in counts.items()
            if count > 1
        ][:MAX_EQUAL_KEYS]
    )


def _with_json_constants(text: str) -> str:
    """Return a text with JSON's constants for Python's; strings stay as they are."""
    return _STRING_OR_WORD.sub(lambda match: _PYTHON_WORDS.get(match.group(), match.group()), text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _not_json(problem: str, hint: str) -> InvalidRequest:
    return InvalidRequest([FieldProblem("body", problem, hint)])


_TYPE_HINTS = {
    "string_type": "write a text in double quotes",
    "model_type": "write an object in braces",
    "bool_type": "write true or false",
    "literal_error": "write docker or singularity",
}


_CALLED = {
    **dict.fromkeys(("arch", "cpu", "target", "microarchitecture"), "architecture"),
    **dict.fromkeys(("cuda", "rocm", "accelerator"), "gpu"),
    **dict.fromkeys(("os", "system"), "platform"),
    **dict.fromkeys(("branch", "tag", "commit", "revision", "ref"), "version"),
    **dict.fromkeys(("specs", "spack"), "packages"),
}
"""What people call a field that has another name."""


def _field_problem(detail: dict[str, Any], model: type[BaseModel]) -> FieldProblem:
    context = detail.get("ctx") or {}
    path = [str(part) for part in detail["loc"]]
    field = ".".join(_shown_name(part) for part in path)
    kind = detail["type"]
    if kind == "request":
        return FieldProblem(field, context["problem"], context["hint"])
    if kind == "missing":
        return FieldProblem(field, "is missing", _example_hint(model, path))
    if kind == "extra_forbidden":
        known = list(_model_at(model, path[:-1]).model_fields)
        meant = _CALLED.get(path[-1].lower())
        close = difflib.get_close_matches(path[-1][:MAX_TEXT], known, n=1, cutoff=0.5)
        if meant in known:
            close = [meant]
        return FieldProblem(
            field,
            "is not a known field",
            f"did you mean {close[0]}?" if close else f"known fields: {', '.join(known)}",
        )
    hint = _TYPE_HINTS.get(kind, "")
    if kind == "string_type" and detail.get("input") is False:
        hint = "write null where there is none"
    return FieldProblem(field, detail["msg"][0].lower() + detail["msg"][1:], hint)


def _shown_name(name: str) -> str:
    """Return a field's name for messages: cut, and without what breaks lines or terminals."""
    return (name if len(name) <= 60 else name[:57] + "...").encode("unicode_escape").decode("ascii")


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return model


def _example_hint(model: type[BaseModel], path: list[str]) -> str:
    info = _model_at(model, path[:-1]).model_fields.get(path[-1])
    return (
        f"for example {json.dumps(info.examples[0])}"
        if info is not None and info.examples
        else "add it"
    )
