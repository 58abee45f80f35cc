"""Show the API's description to people: the same document that programs get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, current_app, render_template, request

from service.api.openapi import document


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/docs", "docs", docs)


def docs() -> str:
    described = document(current_app, request.root_path)
    return render_template(
        "docs.html",
        info=described["info"],
        root=request.root_path,
        calls=[
            _call(path, method, operation)
            for path, operations in described["paths"].items()
            for method, operation in operations.items()
        ],
        models=[
            _model(name, schema) for name, schema in described["components"]["schemas"].items()
        ],
    )


def _call(path: str, method: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    answers = [
        {
            "status": status,
            "description": answer["description"],
            "content": [
                {"type": kind, "shape": _shape(content["schema"])}
                for kind, content in answer.get("content", {}).items()
            ],
        }
        for status, answer in sorted(operation["responses"].items())
    ]
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    return {
        "path": path,
        "method": method.upper(),
        "id": operation["operationId"],
        "summary": operation["summary"],
        "is_public": operation.get("security") == [],
        "answers": answers,
        "parameters": operation["parameters"],
        "body": next((_shape(body["schema"]) for body in bodies), None),
    }


def _model(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    fields = [
        {
            "name": field,
            "shape": _shape(inner),
            "is_required": field in required,
            "description": inner.get("description", ""),
        }
        for field, inner in schema.get("properties", {}).items()
    ]
    return {
        "name": name,
        "description": schema.get("description", ""),
        "fields": fields,
        "values": schema.get("enum", ()),
    }


def _shape(schema: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """A schema in a few words; each with whether it is the name of a model."""
    if "$ref" in schema:
        return [(schema["$ref"].rpartition("/")[2], True)]
    if "anyOf" in schema:
        parts = [_shape(choice) for choice in schema["anyOf"]]
        return [
            word
            for number, part in enumerate(parts)
            for word in ([("or", False)] if number else []) + part
        ]
    if "const" in schema or "enum" in schema:
        return [(", ".join(map(str, schema.get("enum", [schema.get("const")]))), False)]
    if schema.get("type") == "array":
        return [("list of", False), *_shape(schema["items"])]
    if isinstance(schema.get("additionalProperties"), dict):
        return [("object of", False), *_shape(schema["additionalProperties"])]
    return [(schema.get("type", "bytes"), False)]
