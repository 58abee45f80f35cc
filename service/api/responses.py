"""Turn rows and records into the JSON objects that the API answers. Pure.

The classes are the answers' models. mypy holds what is made here against them, and the API's
description is made from them (`openapi`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, GetPydanticSchema
from typing_extensions import NotRequired, TypedDict

from image_builder.errors import ErrorCode
from image_builder.plan.image_name import is_private_name
from image_builder.request.build_request import BuildRequest
from image_builder.request.machines import MachineEntry
from image_builder.state import BuildState
from image_builder.store.record import ImageRecord
from image_builder.timeline import spans
from image_builder.timeline.origins import ORIGINS
from image_builder.timeline.spans import Span
from service.db.shares import Audience
from service.packages import Chosen, Installed
from service.timeline import BuildTimeline
from service.times import moment, moment_if, moment_of

_PENDING_STAGE = "queue"


def _shaped_by(model: type) -> GetPydanticSchema:
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
StoredRequest = Annotated[dict[str, Any], _shaped_by(BuildRequest)]


class Accepted(TypedDict):
    """A request that was taken."""

    id: str
    folder: NotRequired[
        Annotated[str, Field(description="the hash of the folder that was sent, to ask for again")]
    ]


class Progress(TypedDict):
    """How far the install of packages is."""

    done: int
    total: int
    what: str | None


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


class BuildAnswer(TypedDict):
    """A build. The first four fields are those of the first version of the API."""

    status: BuildState
    message: Annotated[str | None, Field(description="why it failed, or what it waits for")]
    image_id: str
    filename: Annotated[
        str | None,
        Field(
            description="the SIF's name; null for the engine docker, and for a build that failed before its conversion"
        ),
    ]
    id: str
    created_at: Time
    started_at: Time | None
    building_at: Time | None
    converting_at: Time | None
    ended_at: Time | None
    stage: Annotated[str | None, Field(description="what is done at present")]
    progress: Progress | None
    error_code: ErrorCode | None
    hint: Annotated[str | None, Field(description="what to do about the failure")]
    identity: Annotated[str | None, Field(description="what makes two builds the same")]
    sha256: Sha256 | None
    size_bytes: int | None
    pushed_digest: str | None
    audit: Annotated[
        AuditAnswer | None, Field(description="null until the image is made, and without Spack")
    ]
    push: bool
    visibility: Annotated[Literal["private", "site"], Field(description="who sees the image")]
    warnings: list[str]
    request: StoredRequest


class BuildList(TypedDict):
    """A page of the caller's builds, newest first."""

    builds: list[BuildAnswer]
    page: int
    per_page: int
    total: int
    pages: int


class SpanAnswer(TypedDict):
    """A part of a build."""

    kind: Annotated[
        Literal["step", "layer", "package"],
        Field(description="a step of the service, a layer of the image, or a package of Spack"),
    ]
    name: str
    version: Annotated[str | None, Field(description="of a package")]
    hash: Annotated[str | None, Field(description="of a package, in full or its first digits")]
    began_at: Time
    ended_at: Annotated[Time | None, Field(description="null while it goes on")]
    seconds: Annotated[float | None, Field(description="how long it took; null while it goes on")]
    outcome: Annotated[
        Literal["done", "built", "cached", "present", "failed", "stopped"] | None,
        Field(
            description="; ".join(f"{name}: {text}" for name, text in spans.OUTCOMES.items())
            + "; null while it goes on"
        ),
    ]


class TimelineAnswer(TypedDict):
    """What ran in a build, and when, in the order in which it began."""

    began_at: Time
    ended_at: Annotated[Time | None, Field(description="null while the build goes on")]
    spans: Annotated[
        list[SpanAnswer], Field(description="none for a build whose image was there already")
    ]
    left_out: Annotated[int, Field(description="how many spans were too many to keep")]


class PlanAnswer(TypedDict):
    """What would be built."""

    image_id: str
    filename: str | None
    identity: Annotated[
        str | None, Field(description="null while the base image cannot be reached")
    ]
    spack_yaml: str | None
    dockerfile: str
    warnings: list[str]
    description_yaml: NotRequired[
        Annotated[str, Field(description="the eflows4hpc.yaml that the request's description is")]
    ]


class ImageSummary(TypedDict):
    """A finished image."""

    filename: str
    image_id: str
    identity: str
    platform: str
    sha256: Sha256 | None
    size_bytes: int | None
    created_at: Time
    visibility: Annotated[
        Literal["private", "site"], Field(description="site: everybody who logs in sees it")
    ]


class ScanAnswer(TypedDict):
    """What a scanner found in an image; its document `scan.json` has each finding."""

    scanner: str
    fail_on: Annotated[
        Literal["low", "medium", "high", "critical"] | None,
        Field(description="the severity from which on a build failed then"),
    ]
    counts: Annotated[dict[str, int], Field(description="how many findings of each severity")]


class ImageAnswer(ImageSummary, total=False):
    """A finished image, and what is known of how it was made."""

    request: StoredRequest
    recipe: Annotated[str, Field(description="the version of the recipe")]
    commit: Annotated[str | None, Field(description="the workflow registry's commit")]
    audit: AuditAnswer | None
    scan: Annotated[
        ScanAnswer | None, Field(description="what the operator's scanner found; null without one")
    ]
    image_bytes: Annotated[int | None, Field(description="the image's size in Docker, unpacked")]
    slim: Annotated[bool, Field(description="whether what only building needs was left out")]
    full_because: Annotated[str, Field(description="why it was not, though asked for; else empty")]
    labels: dict[str, str]


_PUBLIC_DETAILS = frozenset(ImageAnswer.__annotations__)
"""The details of a record that clients see; others are the service's own notes."""


class OneImageAnswer(ImageAnswer):
    """A finished image with the names of the texts that it was made from."""

    documents: list[str]
    pinned: Annotated[bool, Field(description="whether clean-up keeps it whatever its limits say")]
    shared_with: Annotated[
        list[str] | None, Field(description="who else sees your private image; null for others")
    ]
    shared_with_groups: Annotated[
        list[str] | None,
        Field(description="groups whose members see your private image; null for others"),
    ]


class ImageList(TypedDict):
    """The finished images, newest first."""

    images: list[ImageSummary]


class PackageAnswer(TypedDict):
    """A package that is installed in an image."""

    name: str
    version: str
    kind: Literal["spack", "debian", "python"]
    licence: Annotated[
        str | None,
        Field(description="an SPDX expression, or the package's own words; null: it states none"),
    ]
    hash: Annotated[str | None, Field(description="Spack's hash")]
    origin: Annotated[
        Literal["built", "cached", "present", "layer", "external"] | None,
        Field(
            description="; ".join(f"{name}: {text}" for name, text in ORIGINS.items())
            + "; null where that is not known"
        ),
    ]


class PackageList(TypedDict):
    """A page of what is installed in an image, by name."""

    packages: list[PackageAnswer]
    source: Annotated[
        str | None,
        Field(description="the document that tells it; null: there is none, and nothing is known"),
    ]
    page: int
    per_page: int
    total: int
    pages: int


class FindingAnswer(TypedDict):
    """Something to know before the image is used."""

    level: Literal["error", "warning"]
    subject: str
    message: str
    hint: str
    rule: Annotated[str, Field(description="the rule that it follows from")]
    source: Annotated[list[str], Field(description="the documents or issues that say so")]


class CheckAnswer(TypedDict):
    """Whether an image works on a machine, and the line that runs it there."""

    image: str
    machine: str
    ok: Annotated[bool, Field(description="false for the answer does_not_run")]
    answer: Literal["runs", "runs_but", "does_not_run"]
    findings: list[FindingAnswer]
    unknown: list[str]
    run_command: str


class DifferenceAnswer(TypedDict):
    """A fact in which a machine of the catalogue is another."""

    fact: str
    here: str | None
    there: str | None


class LikenessAnswer(TypedDict):
    """A machine of the catalogue that is like this one."""

    name: str
    title: str
    differences: list[DifferenceAnswer]


class RecognisedAnswer(TypedDict):
    """A machine, recognised from facts that were collected there."""

    machine: Annotated[dict[str, str], Field(description="what a request takes as its machine")]
    facts: Annotated[dict[str, str], Field(description="what a check takes behind the ?")]
    nearest: Annotated[
        list[LikenessAnswer], Field(description="machines of the catalogue, the likest first")
    ]
    notes: Annotated[list[str], Field(description="what was not found, and what to do about it")]


class ArchitectureAnswer(TypedDict):
    """A target that can be asked for."""

    name: str
    family: str
    platform: str
    vendor: str
    aliases: list[str]
    parents: list[str]


class ArchitectureList(TypedDict):
    """The known targets."""

    architectures: list[ArchitectureAnswer]
    platforms: list[str]


class MachineAnswer(MachineEntry):
    """A machine of the catalogue. What is not known is left out."""

    name: str


class MachineList(TypedDict):
    """The machine catalogue."""

    machines: list[Annotated[dict[str, Any], _shaped_by(MachineAnswer)]]


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


def build_answer(row: Any) -> BuildAnswer:
    """Return a build's status."""
    own = row.own_state
    state: BuildState = own or row.run_state
    return {
        "status": state,
        "message": row.message if own is not None else row.run_message,
        "image_id": row.image_id,
        "filename": row.filename if _may_have_file(state, row) else None,
        "id": row.id,
        "created_at": moment(row.created_at),
        "started_at": moment_if(row.started_at),
        "building_at": moment_if(row.building_at),
        "converting_at": moment_if(row.converting_at),
        "ended_at": moment_if(row.ended_at),
        "stage": None if state is BuildState.FINISHED else row.stage or _PENDING_STAGE,
        "progress": None
        if row.progress_total is None
        else {"done": row.progress_done, "total": row.progress_total, "what": row.progress_what},
        "error_code": row.error_code,
        "hint": row.hint,
        "identity": row.identity,
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "pushed_digest": row.pushed_digest,
        "audit": row.audit,
        "push": row.push,
        "visibility": row.visibility,
        "warnings": row.warnings,
        "request": row.request,
    }


def timeline_answer(shown: BuildTimeline) -> TimelineAnswer:
    """Return what ran in a build, and when."""
    return {
        "began_at": moment_of(shown.began_s),
        "ended_at": None if shown.ended_s is None else moment_of(shown.ended_s),
        "spans": [_span(span) for span in shown.spans],
        "left_out": shown.left_out,
    }


def _span(span: Span) -> SpanAnswer:
    seconds = None if span.ended_s is None else round(span.ended_s - span.began_s, 3)
    return {
        "kind": cast("Any", span.kind),
        "name": span.name,
        "version": span.version or None,
        "hash": span.hash or None,
        "began_at": moment_of(span.began_s),
        "ended_at": None if span.ended_s is None else moment_of(span.ended_s),
        "seconds": seconds,
        "outcome": cast("Any", span.outcome),
    }


def _may_have_file(state: BuildState, row: Any) -> bool:
    """Return whether a file of the build's name may exist.

    A build that failed before its conversion has none; clients of the first service take its name
    as proof that there is one.
    """
    return state is not BuildState.FAILED or row.converting_at is not None


def image_answer(filename: str, record: ImageRecord) -> ImageAnswer:
    """Return a finished image and what is known of how it was made."""
    details = {key: record.details[key] for key in _PUBLIC_DETAILS if key in record.details}
    return cast("ImageAnswer", {**image_summary(filename, record), **details})


def image_summary(filename: str, record: ImageRecord) -> ImageSummary:
    """Return a finished image in the form of a list's entry."""
    return {
        "filename": filename,
        "image_id": record.image_id,
        "identity": record.identity,
        "platform": record.platform,
        "sha256": record.sha256,
        "size_bytes": record.size_bytes,
        "created_at": moment(record.created),
        "visibility": "private" if is_private_name(filename) else "site",
    }


def package_list(found: Installed, chosen: Chosen, per_page: int) -> PackageList:
    """Return a page of what is installed in an image."""
    return {
        "packages": [
            {
                "name": one.name,
                "version": one.version,
                "kind": cast("Any", one.kind),
                "licence": one.licence,
                "hash": one.hash,
                "origin": cast("Any", found.origin(one)),
            }
            for one in chosen.packages
        ],
        "source": found.source,
        "page": chosen.page,
        "per_page": per_page,
        "total": chosen.total,
        "pages": chosen.pages,
    }


def machine_list(machines: Any) -> MachineList:
    """Return the machine catalogue, by name."""
    return {
        "machines": [
            {"name": name, **entry.model_dump(mode="json", exclude_none=True)}
            for name, entry in sorted(machines.items())
        ]
    }


def audience_answer(audience: Audience | None) -> dict[str, list[str] | None]:
    """Return with whom an image is shared, as the answer has it; None is for no owner."""
    return {
        "shared_with": None if audience is None else list(audience.users),
        "shared_with_groups": None if audience is None else list(audience.groups),
    }
