"""Turn builds into the JSON objects that the API answers. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from image_builder.errors import ErrorCode
from image_builder.state import BuildState
from image_builder.timeline import spans
from image_builder.timeline.spans import Span
from service.api.responses import AuditAnswer, Sha256, StoredRequest, Time
from service.timeline import BuildTimeline
from service.times import moment, moment_if, moment_of

_PENDING_STAGE = "queue"


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
