"""Say what the API answers: what all answers share, and those that are about no build and no image.

These classes, and those of `build_answers`, `image_answers` and `machine_answers`, are the answers'
models. mypy holds what is made there against them, and the API's description is made from them
(`openapi`). Pure.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetPydanticSchema
from typing_extensions import TypedDict

from image_builder.request.build_request import BuildRequest


def shaped_by(model: type) -> GetPydanticSchema:
    """A JSON object, described as the model that it was dumped from."""
    return GetPydanticSchema(lambda _, handler: handler(model))


Time = Annotated[
    str,
    Field(
        json_schema_extra={
            "format": "date-time",
            "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        }
    ),
]
Sha256 = Annotated[str, Field(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
StoredRequest = Annotated[dict[str, Any], shaped_by(BuildRequest)]


class AuditCheck(TypedDict):
    """One comparison of the image with the request."""

    name: str
    expected: str
    found: str
    ok: bool


class AuditProblem(TypedDict):
    """One way in which the image differs from the request."""

    check: str
    message: str
    node: str
    hash: str


class AuditAnswer(TypedDict):
    """What Spack built, compared with the request."""

    ok: bool
    checks: list[AuditCheck]
    problems: list[AuditProblem]


class GroupList(TypedDict):
    """The groups that you are in, with which you may share images."""

    groups: list[str]


class DeviceLogIn(TypedDict):
    """Where a program logs a user in with the device flow (RFC 8628)."""

    issuer: str
    client_id: str
    device_authorization_endpoint: str
    token_endpoint: str
    scopes: list[str]
    name: Annotated[str, Field(description="what people call the provider")]


class LoggedIn(TypedDict):
    """A token of this service, which is shown this once."""

    token: str
    user: str
    expires_at: Time


class Alive(TypedDict):
    """The server answers."""

    status: Literal["alive"]


class Ready(TypedDict):
    """The service can build."""

    status: Literal["ready"]
    checks: dict[str, str]
