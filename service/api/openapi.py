"""Make the API's own description, an OpenAPI 3.1 document.

It is put together from what each route declares with `describes` and from the models that parse
requests and shape answers. A call without a declaration is a fault that a test finds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from flask import Flask
from pydantic import BaseModel, TypeAdapter

from service.problems import PROBLEM_TYPE, Problem
from service.version import VERSION

BLUEPRINT = "api."
JSON, FORM = "application/json", "multipart/form-data"

TEXT: Mapping[str, Any] = {"type": "string"}
BINARY: Mapping[str, Any] = {}
"""Bytes: OpenAPI 3.1 says so by saying nothing."""

ANY_CALL = (500, 503)
LOGGED_IN = (401, 403)
COUNTED = (429,)
NAMED = (404,)
"""Calls whose path names something."""
MEANINGS = {
    400: "The request is wrong; `errors` lists every wrong field.",
    401: "No log-in, or a wrong one.",
    403: "Only administrators may do that, or the token may not.",
    404: "There is no such thing; what is somebody else's is as good as none.",
    413: "The body is too large.",
    415: "A browser sends something else than JSON.",
    416: "The image has no such part.",
    429: "A quota is used up, logging in failed too often, or there were too many calls.",
    500: "The service has a fault; `error_id` finds it in the operator's log.",
    503: "Something that is needed does not answer now.",
}
HEADERS = {
    416: {"Content-Range": "how many bytes there are", "ETag": "the sha256"},
    401: {"WWW-Authenticate": "how to log in"},
    429: {"Retry-After": "when to come back, in seconds"},
    503: {"Retry-After": "when to come back, in seconds"},
}

PATH_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "build_id": {
        "description": "the id of a build",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
    },
    "filename": {
        "description": "the file name of an image",
        "schema": {"type": "string", "minLength": 1},
    },
    "webhook_id": {
        "description": "the number of a webhook",
        "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
    },
    "name": {"description": "the name of a document", "schema": {"type": "string", "minLength": 1}},
}

View = TypeVar("View", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One way in which a call succeeds.

    It answers with a JSON object of `model`, with `content` by its type, or with no body.
    """

    description: str
    model: Any = None
    content: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    links: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    """What to ask next: the name of a call, and where in this answer its parameters stand."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What a route declares of a call. `problems` are statuses that its form does not imply."""

    summary: str
    answers: Mapping[int, Answer]
    body: type[BaseModel] | None
    form: type[BaseModel] | None
    query: type[BaseModel] | None
    problems: tuple[int, ...]
    is_public: bool
    is_costly: bool
    """Whether it may take long to compute: fewer of them are allowed."""
    is_counted: bool
    is_for_any_token: bool
    """Whether a token of any scope may do it, though it changes something."""

    def problem_statuses(self, *, is_named: bool) -> list[int]:
        """Return every status that comes with a problem document."""
        statuses = {*ANY_CALL, *self.problems}
        statuses.update(() if self.is_public else LOGGED_IN)
        statuses.update(COUNTED if self.is_counted else ())
        statuses.update(NAMED if is_named else ())
        statuses.update((400,) if self.query is not None else ())
        statuses.update((400, 413, 415) if self.body is not None else ())
        return sorted(statuses)


def describes(
    summary: str,
    *,
    answer: Any = None,
    answers: Mapping[int, Answer] | None = None,
    links: Mapping[str, Mapping[str, str]] | None = None,
    body: type[BaseModel] | None = None,
    form: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    problems: tuple[int, ...] = (),
    is_public: bool = False,
    is_costly: bool = False,
    is_counted: bool = True,
    is_for_any_token: bool = False,
) -> Callable[[View], View]:
    """Declare a call: with `answer`, it answers 200 with an object of that model and `links`.

    Without `answer`, `answers` lists what it answers.
    """
    declared_answers = (
        answers
        if answers is not None
        else {200: Answer(description=_first_line(answer), model=answer, links=links or {})}
    )

    def declared(view: View) -> View:
        view.cic_call = Call(  # type: ignore[attr-defined]
            summary=summary,
            answers=declared_answers,
            body=body,
            form=form,
            query=query,
            problems=problems,
            is_public=is_public,
            is_costly=is_costly,
            is_counted=is_counted,
            is_for_any_token=is_for_any_token,
        )
        return view

    return declared


def calls(app: Flask) -> Iterable[tuple[str, str, str, Call]]:
    """Yield the path, method, operation and declaration of every call.

    Raises `KeyError` for a call without a declaration.
    """
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith(BLUEPRINT):
            declared = getattr(app.view_functions[rule.endpoint], "cic_call", None)
            if declared is None:
                raise KeyError(f"{rule.endpoint} is not described: add @describes to its route")
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield (
                    re.sub(r"<(\w+)>", r"{\1}", rule.rule),
                    method,
                    rule.endpoint.removeprefix(BLUEPRINT),
                    declared,
                )


def call_of(app: Flask, endpoint: str | None) -> Call | None:
    """Return what the route of an endpoint declares; None for one that is no call."""
    declared: Call | None = getattr(app.view_functions.get(endpoint or ""), "cic_call", None)
    return declared


def document(app: Flask, root: str) -> dict[str, Any]:
    """Return the description of an application's calls, whose paths begin with `root`."""
    described = sorted(calls(app), key=lambda call: call[:2])
    references, schemas = _schemas(model for _, _, _, call in described for model in _models(call))
    paths: dict[str, dict[str, Any]] = {}
    for path, method, operation, call in described:
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, call, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Container Image Creation",
            "version": VERSION,
            "description": "Container images of workflow steps, made for one machine.",
        },
        "servers": [{"url": root or "/"}],
        "security": [{"basic": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "user and password, or a token as the user",
                },
                "bearer": {"type": "http", "scheme": "bearer", "description": "a token"},
            },
        },
    }


def _operation(
    path: str, operation: str, call: Call, references: Mapping[Any, Any]
) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    description: dict[str, Any] = {
        "operationId": operation,
        "summary": call.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, **PATH_PARAMETERS[name]}
            for name in names
        ]
        + (_query_parameters(call.query) if call.query is not None else []),
        "responses": {
            str(status): _answer(answer, references) for status, answer in call.answers.items()
        }
        | {
            str(status): _problem(status, references)
            for status in call.problem_statuses(is_named=bool(names))
        },
    }
    if call.body is not None:
        description["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": references[call.body]}}
            | ({FORM: {"schema": references[call.form]}} if call.form is not None else {}),
        }
    return description | ({"security": []} if call.is_public else {})


def _answer(answer: Answer, references: Mapping[Any, Any]) -> dict[str, Any]:
    content = {kind: {"schema": dict(schema)} for kind, schema in answer.content.items()}
    if answer.model is not None:
        content[JSON] = {"schema": references[answer.model]}
    response = _response(answer.description, content, answer.headers)
    if answer.links:
        response["links"] = {
            name: {"operationId": name, "parameters": dict(parameters)}
            for name, parameters in answer.links.items()
        }
    return response


def _problem(status: int, references: Mapping[Any, Any]) -> dict[str, Any]:
    meaning = MEANINGS.get(status, HTTPStatus(status).phrase)
    return _response(
        meaning, {PROBLEM_TYPE: {"schema": references[Problem]}}, HEADERS.get(status, {})
    )


def _response(
    description: str, content: Mapping[str, Any], headers: Mapping[str, str]
) -> dict[str, Any]:
    response: dict[str, Any] = {"description": description}
    if content:
        response["content"] = dict(content)
    if headers:
        response["headers"] = {
            name: {"description": text, "schema": TEXT} for name, text in headers.items()
        }
    return response


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """A field that may be None is one that may be left out: there is no null behind a `?`."""
    properties = model.model_json_schema(ref_template="{model}")
    inner = properties.get("$defs", {})
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description"),
            "schema": _not_null(schema, inner),
        }
        for name, schema in properties["properties"].items()
    ]


_QUERY_WORDS = ("type", "enum", "minimum", "maximum", "exclusiveMaximum", "default")


def _not_null(schema: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for choice in (*schema.get("anyOf", ()), schema):
        chosen = inner[choice["$ref"]] if "$ref" in choice else choice
        kept |= {key: chosen[key] for key in _QUERY_WORDS if chosen.get(key) not in (None, "null")}
    return kept


def _models(call: Call) -> list[Any]:
    bodies = [body for body in (call.body, call.form) if body is not None]
    return bodies + [answer.model for answer in call.answers.values() if answer.model is not None]


def _schemas(models: Iterable[Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """A reference for each model, and what they refer to."""
    wanted = dict.fromkeys([*models, Problem])
    references, components = TypeAdapter.json_schemas(
        [(model, "validation", TypeAdapter(model)) for model in wanted],
        ref_template="#/components/schemas/{model}",
    )
    return {model: schema for (model, _), schema in references.items()}, components["$defs"]


def _first_line(model: Any) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]
