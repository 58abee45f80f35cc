"""A build request: parsed once at the edge, frozen from there on.

`parse_request` reports every wrong field together. The text of a request may be JSON, or JSON in
which Python's `True`, `False` and `None` stand bare, as in the project's first documentation.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from image_builder import targets
from image_builder.errors import FieldProblem, InvalidRequest

MAX_TEXT = 200
MAX_PATH = 4096
LATEST = "latest"
BASE = "BASE"
Engine = Literal["docker", "singularity"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
_TAKEN_FOLDERS = frozenset(
    {
        "bin",
        "boot",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "sbin",
        "software-catalog",
        "spack",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
    }
)
"""What lies at the top of an image already, where the step's folder gets its place."""
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/@-]*\Z")
_SPEC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:[@ +~%][A-Za-z0-9_@.:=,+~% /-]*)?\Z")
_ABSENT = frozenset({"", "none", "null", "nompi", "nogpu"})
_TRUE, _FALSE = frozenset({"true"}), frozenset({"false"})


def _problem(problem: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("request", "{problem}", {"problem": problem, "hint": hint})


def _short(value: Any) -> str:
    """How a message shows a value: texts quoted and cut, anything else by its kind, however large
    or deep it is.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    kinds = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        type(None): "null",
        list: "a list",
    }
    return kinds.get(type(value), "an object")


def _checked(value: str, shape: re.Pattern[str], hint: str) -> str:
    if len(value) > MAX_TEXT:
        raise _problem(f"is longer than {MAX_TEXT} characters", "write a shorter value")
    if not shape.match(value) or ".." in value:
        raise _problem(f"{_short(value)} is not allowed here", hint)
    return value


def _folder_name(value: str) -> str:
    return _checked(
        value,
        _NAME,
        "write a folder's name: letters, digits, '.', '_', '+' and '-', "
        "beginning with a letter or digit",
    )


def _step_name(value: str) -> str:
    if _folder_name(value) in _TAKEN_FOLDERS:
        raise _problem(
            f"/{value} is taken in the image, where the step's folder would lie",
            "give the step's folder another name",
        )
    return value


def _version_name(value: str) -> str:
    _checked(value, _VERSION, "write a branch, a tag or a commit")
    if "@{" in value or "//" in value or value.endswith(("/", ".", ".lock")):
        raise _problem(
            f"{_short(value)} is not a valid git name", "write a branch, a tag or a commit"
        )
    return value


def _spec(value: str) -> str:
    one_blank = " ".join(part for part in value.split(" ") if part)
    return _checked(one_blank, _SPEC, "write a Spack spec such as openmpi@4 or cuda@12")


def _absent_or_text(value: Any) -> Any:
    """None, "" and "none" all say that something is not wanted."""
    return None if isinstance(value, str) and value.strip(" ").lower() in _ABSENT else value


def _lenient_bool(value: Any) -> Any:
    if isinstance(value, str) and value.strip(" ").lower() in _TRUE | _FALSE:
        return value.strip(" ").lower() in _TRUE
    if isinstance(value, bool) or value is None:
        return value
    raise _problem(f"{_short(value)} is neither true nor false", "write true or false")


def _text_like(shape: re.Pattern[str]) -> WithJsonSchema:
    """How the API's description tells the shape of a text."""
    pattern = "^" + shape.pattern.replace(r"\Z", "$")
    return WithJsonSchema({"type": "string", "maxLength": MAX_TEXT, "pattern": pattern})


FolderName = Annotated[str, AfterValidator(_folder_name), _text_like(_NAME)]
StepName = Annotated[str, AfterValidator(_step_name), _text_like(_NAME)]
Version = Annotated[str, AfterValidator(_version_name), _text_like(_VERSION)]
SpecText = Annotated[str, AfterValidator(_spec), _text_like(_SPEC)]
OptionalSpec = Annotated[
    SpecText | None, BeforeValidator(_absent_or_text, json_schema_input_type=str | None)
]
Flag = Annotated[
    bool,
    BeforeValidator(
        _lenient_bool, json_schema_input_type=bool | Literal["true", "True", "false", "False"]
    ),
]


class Strict(BaseModel):
    """A part of a request: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_endless_text(cls, value: Any) -> Any:
        """Before anything else looks at it: not even blanks may go on for ever."""
        if isinstance(value, str) and len(value) > MAX_PATH:
            raise _problem(f"is longer than {MAX_PATH} characters", "write a shorter value")
        return value


class Machine(Strict):
    """The machine that an image is for.

    `architecture` keeps what was asked for (`rome`); `target` is what it means (`zen2`).
    """

    platform: str = Field(description="Container platform", examples=["linux/amd64"])
    architecture: str | None = Field(
        default=None,
        examples=["rome", "zen2", "x86_64_v3"],
        description="archspec target or product name; none: the generic family",
    )
    container_engine: Engine = Field(examples=["singularity"])
    mpi: OptionalSpec = Field(
        default=None, examples=["openmpi@4"], description="Spack spec of the one MPI"
    )
    gpu: OptionalSpec = Field(
        default=None, examples=["cuda@12"], description="Spack spec of the GPU runtime"
    )
    gpu_arch: Annotated[str | None, BeforeValidator(_absent_or_text)] = Field(
        default=None, examples=["sm_90", "a100"], description="GPU architecture or product name"
    )

    @field_validator("platform", mode="after")
    @classmethod
    def _known_platform(cls, value: str) -> str:
        try:
            return targets.parse_platform(value)
        except targets.UnknownName as error:
            raise _problem(error.problem, error.hint) from None

    @field_validator("architecture", mode="after")
    @classmethod
    def _known_architecture(cls, value: str | None, info: ValidationInfo) -> str | None:
        name = (value or "").strip(" ").lower()
        if name in targets.GENERIC_NAMES:
            return None
        _checked(name, _NAME, "write an archspec target such as zen2, or a product such as rome")
        try:
            if "platform" in info.data:
                targets.resolve(name, info.data["platform"])
            else:  # the platform was wrong: still say what else is
                targets.require_known(name)
        except targets.UnknownName as error:
            raise _problem(error.problem, error.hint) from None
        return name

    @field_validator(
        "container_engine", mode="before", json_schema_input_type=Engine | Literal["apptainer"]
    )
    @classmethod
    def _known_engine(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = value.strip(" ").lower()
        name = {"apptainer": "singularity"}.get(name, name)
        if name not in ("docker", "singularity"):
            raise _problem(
                f"unknown container engine {_short(value)}", "write docker or singularity"
            )
        return name

    @field_validator("gpu_arch", mode="after")
    @classmethod
    def _gpu_arch_text(cls, value: str | None) -> str | None:
        return (
            value
            if value is None
            else _checked(value, _NAME, "write an architecture such as sm_90 or gfx90a")
        )

    @property
    def target(self) -> targets.Target:
        """The archspec target that `architecture` names on `platform`."""
        return targets.resolve(self.architecture, self.platform)


class BuildRequest(Strict):
    """One build: a machine, a workflow step, and how to go about it.

    `push` None means that nobody said: then the image is pushed where a registry is configured.
    """

    machine: Machine
    workflow: FolderName = Field(examples=["minimal_workflow"])
    step_id: StepName = Field(examples=["wordcount"])
    version: Version = Field(
        default=LATEST, description="branch, tag or commit; latest is the default branch"
    )
    path: str | None = Field(
        default=None, description="library mode only: a local folder with the description"
    )
    force: Flag = False
    push: Flag | None = None
    slim: Flag | None = None

    @field_validator("version", mode="before", json_schema_input_type=Version | Literal[""] | None)
    @classmethod
    def _no_version_is_latest(cls, value: Any) -> Any:
        return LATEST if value is None or value == "" else value

    @field_validator("force", mode="before", json_schema_input_type=Flag | None)
    @classmethod
    def _no_force_is_false(cls, value: Any) -> Any:
        return False if value is None else value

    @field_validator("path", mode="after")
    @classmethod
    def _path_text(cls, value: str | None) -> str | None:
        if value is not None and ("\0" in value or "\n" in value):
            raise _problem("is not a path", "write the path of a folder on this machine")
        return value or None

    @property
    def is_base(self) -> bool:
        """Whether this asks for the base image itself."""
        return self.workflow == BASE and self.step_id == BASE


class NamedMachine(Protocol):
    """A machine of the catalogue (`machines.MachineEntry`)."""

    def request_fields(self) -> dict[str, Any]:
        """The `machine` of a request that names it."""


def expand(fields: Mapping[str, Any], machines: Mapping[str, NamedMachine]) -> dict[str, Any]:
    """The fields of a request, with a machine that is only named (`"lumi-c"`, `{"name": "lumi-c"}`)
    spelled out.

    What is written beside the name goes before what the catalogue says; another GPU, or none, drops
    its architecture. Raises `InvalidRequest` for a name that the catalogue does not hold.
    """
    machine = fields.get("machine")
    own = {"name": machine} if isinstance(machine, str) else machine
    if not isinstance(own, Mapping) or "name" not in own:
        return dict(fields)
    name = own["name"]
    entry = machines.get(name.strip().lower()) if isinstance(name, str) else None
    if entry is None:
        close = (
            targets.nearest(name if isinstance(name, str) else "", machines) or tuple(machines)[:3]
        )
        raise InvalidRequest(
            [
                FieldProblem(
                    "machine" if isinstance(machine, str) else "machine.name",
                    f"{_short(name)} is not a machine of the catalogue",
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
) -> BuildRequest:
    """A request from a JSON text or from the mapping it holds.

    `allow_path` is for the library; over REST, `path` is refused. With the catalogue `machines`, a
    machine may be named. Raises `InvalidRequest` with every problem.
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
    if not allow_path and fields.get("path") is not None:
        problems.append(
            FieldProblem(
                "path",
                "is for the library mode only",
                "leave it out and name a workflow of the registry",
            )
        )
        fields.pop("path")
    try:
        request = BuildRequest.model_validate(fields)
    except ValidationError as error:
        problems += [
            problem
            for problem in field_problems(error, BuildRequest)
            if not (unknown_machine and problem.field.split(".")[0] == "machine")
        ]
    if problems:
        raise InvalidRequest(problems)
    return request


def load_json(raw: bytes | str) -> dict[str, Any]:
    """The object that a JSON text holds; bare `True`, `False` and `None` are read as Python writes
    them.

    Raises `InvalidRequest` with the place of a syntax error.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise _not_json("the text is not UTF-8", "save it as UTF-8") from None
    if not text.strip():
        raise _not_json("it is empty", "send a JSON object with machine, workflow and step_id")
    try:
        value = json.loads(_with_json_constants(text), parse_constant=_refuse_constant)
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
    """What pydantic found, each with what to write instead."""
    return [_field_problem(dict(detail), model) for detail in error.errors(include_url=False)]


# An unclosed string is one, too: with nothing to go back for, the time stays linear in the text's
# length.
_STRING_OR_WORD = re.compile(r'"(?:[^"\\]+|\\.)*"?|\b(?:True|False|None)\b', re.DOTALL)
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def _with_json_constants(text: str) -> str:
    """Python's bare constants as JSON's; strings stay as they are."""
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
        close = difflib.get_close_matches(path[-1][:MAX_TEXT], known, n=1, cutoff=0.5)
        return FieldProblem(
            field,
            "is not a known field",
            f"did you mean {close[0]}?" if close else f"known fields: {', '.join(known)}",
        )
    return FieldProblem(
        field, detail["msg"][0].lower() + detail["msg"][1:], _TYPE_HINTS.get(kind, "")
    )


def _shown_name(name: str) -> str:
    """A field's name as messages show it: cut, and without what would break a line or a terminal."""
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
