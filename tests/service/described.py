"""Holds what an application answers against its own description, more strictly than clients have
to: an object may have no field that the description does not know.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request, request_finished
from jsonschema import Draft202012Validator

from service.api.openapi import BLUEPRINT, document
from service.problems import PROBLEM_TYPE


class Description:
    """The description of an application, with every object closed."""

    def __init__(self, app: Flask) -> None:
        self._document = closed(document(app, "/"))

    def complaints(self, path: str, method: str, status: int, kind: str, body: Any) -> list[str]:
        """What the description does not say of an answer of a call."""
        operation = self._document["paths"][path]["get" if method == "HEAD" else method.lower()]
        answer = operation["responses"].get(str(status))
        if answer is None:
            return [f"{method} {path} answers {status}"]
        content = answer.get("content", {})
        if kind not in content:
            return [f"{method} {path} {status} has the content {kind}"] if content or body else []
        return [
            f"{method} {path} {status}: {text}"
            for text in self._problems(content[kind]["schema"], body)
        ]

    def problem_complaints(self, body: Any) -> list[str]:
        """The same for a problem document that no call answered."""
        return self._problems({"$ref": "#/components/schemas/Problem"}, body)

    def _problems(self, schema: Any, body: Any) -> list[str]:
        whole = {
            "$ref": "#/the-schema",
            "the-schema": schema,
            "components": self._document["components"],
        }
        return [
            f"{error.json_path}: {error.message[:300]}"
            for error in Draft202012Validator(whole).iter_errors(body)
        ]


_made: dict[frozenset[str], Description] = {}


def description_of(app: Flask) -> Description:
    """The description of an application, made once for all that have the same calls: it takes longer
    than most answers.
    """
    calls = frozenset(
        f"{sorted(rule.methods or ())} {rule.rule}" for rule in app.url_map.iter_rules()
    )
    if calls not in _made:
        _made[calls] = Description(app)
    return _made[calls]


def closed(schema: Any) -> Any:
    """A schema whose objects may hold nothing but what it lists."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    return (
        {"additionalProperties": False, **made}
        if made.get("type") == "object" and "properties" in made
        else made
    )


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """What is answered meanwhile, by any application of this process in any thread, and is not
    described.
    """
    heard: list[str] = []

    def hear(app: Flask, response: Response, **_: Any) -> None:
        heard.extend(complaints_of(app, response))

    with request_finished.connected_to(hear):
        yield heard


def complaints_of(app: Flask, response: Response) -> list[str]:
    """What the description does not say of the answer to the present request."""
    if "cic" not in app.extensions:
        return []
    description = description_of(app)
    is_json = response.is_json and not response.is_streamed
    body = response.get_json() if is_json and request.method != "HEAD" else response.content_length
    kind = response.mimetype or ""
    if request.url_rule is not None and request.url_rule.endpoint.startswith(BLUEPRINT):
        path = re.sub(r"<(\w+)>", r"{\1}", request.url_rule.rule)
        if request.method == "HEAD":
            return [
                text
                for text in description.complaints(path, "HEAD", response.status_code, "", None)
                if " answers " in text
            ]
        return description.complaints(
            path, request.method, response.status_code, kind, body if is_json else ""
        )
    return (
        description.problem_complaints(body)
        if kind == PROBLEM_TYPE and request.method != "HEAD"
        else []
    )
