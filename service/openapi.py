"""The API's own description, made from the models that parse requests."""

from __future__ import annotations

from typing import Any

from image_builder.request import BuildRequest

VERSION = "1.0"


def document(root: str) -> dict[str, Any]:
    """An OpenAPI 3.1 document of the REST calls."""
    request = BuildRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = request.pop("$defs", {}) | {"BuildRequest": request}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Container Image Creation", "version": VERSION},
        "servers": [{"url": root or "/"}],
        "paths": {},
        "components": {"schemas": schemas, "securitySchemes": {
            "basic": {"type": "http", "scheme": "basic"}, "bearer": {"type": "http", "scheme": "bearer"}}},
    }
