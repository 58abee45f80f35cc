"""Turn finished images into the JSON objects that the API answers. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field
from typing_extensions import TypedDict

from image_builder.plan.image_name import is_private_name
from image_builder.store.record import ImageRecord
from image_builder.timeline.origins import ORIGINS
from service.api.responses import AuditAnswer, Sha256, StoredRequest, Time
from service.db.shares import Audience
from service.packages import Chosen, Installed
from service.times import moment


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


def audience_answer(audience: Audience | None) -> dict[str, list[str] | None]:
    """Return with whom an image is shared, as the answer has it; None is for no owner."""
    return {
        "shared_with": None if audience is None else list(audience.users),
        "shared_with_groups": None if audience is None else list(audience.groups),
    }
