"""Writes how an image came about: an in-toto statement with SLSA's provenance. Pure.

The statement in a SIF has neither times nor a log, so that equal images get equal SIFs; the
document that is stored about an image has both.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

FILE = "provenance.intoto.json"
"""The name of the statement, in the store and in a SIF."""
SIGNED_FILE = "provenance.dsse.json"
"""The name of the statement in an envelope with a signature."""
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
MEDIA_TYPE = "application/vnd.in-toto+json"
AUDIT = "audit"
"""The name of the byproduct that is the audit's verdict."""
BUILD_TYPE = "urn:cic:build:1"
"""What the parameters of the statement mean: this module, and docs/operate.md."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resource:
    """Names something by its digests: an input, a product, or what an image was made with."""

    name: str
    digest: Mapping[str, str | None]
    uri: str | None = None
    annotations: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as in-toto writes it; what is not known is left out."""
        fields = {
            "name": self.name,
            "uri": self.uri,
            "digest": {kind: value for kind, value in sorted(self.digest.items()) if value},
            "annotations": self.annotations,
        }
        return {key: value for key, value in fields.items() if value}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Says what an image was made of and by whom."""

    request: Mapping[str, Any]
    identity: str
    recipe: str
    is_slim: bool
    materials: Sequence[Resource]
    builder_id: str
    byproducts: Sequence[Resource]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Says when a build ran, in seconds since 1970, and what its log is."""

    began_s: float
    ended_s: float
    log: Resource


def statement(origin: Origin, subjects: Sequence[Resource], run: Run | None = None) -> str:
    """Return the statement about `subjects`; without a `run`, equal builds get equal bytes."""
    details: dict[str, Any] = {"builder": {"id": origin.builder_id}}
    byproducts = list(origin.byproducts)
    if run is not None:
        details["metadata"] = {"startedOn": _time(run.began_s), "finishedOn": _time(run.ended_s)}
        byproducts.append(run.log)
    details["byproducts"] = [one.as_dict() for one in byproducts]
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"request": origin.request},
            "internalParameters": {
                "identity": origin.identity,
                "recipe": origin.recipe,
                "slim": origin.is_slim,
            },
            "resolvedDependencies": [one.as_dict() for one in origin.materials],
        },
        "runDetails": details,
    }
    return stated(PREDICATE_TYPE, predicate, subjects)


def stated(predicate_type: str, predicate: Any, subjects: Sequence[Resource]) -> str:
    """Return a statement of any type about `subjects`."""
    content = {
        "_type": STATEMENT_TYPE,
        "subject": [one.as_dict() for one in subjects],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return json.dumps(content, sort_keys=True, indent=1) + "\n"


def with_subjects(earlier: str, subjects: Sequence[Resource]) -> str:
    """Return a statement that is about more subjects, such as a SIF that was made later."""
    content = json.loads(earlier)
    known = content["subject"]
    known += [fields for one in subjects if (fields := one.as_dict()) not in known]
    return json.dumps(content, sort_keys=True, indent=1) + "\n"


def verdict_in(earlier: str) -> dict[str, Any] | None:
    """Return the audit's verdict that a statement repeats, or None if it has none."""
    byproducts = json.loads(earlier)["predicate"]["runDetails"]["byproducts"]
    return next((one["annotations"] for one in byproducts if one["name"] == AUDIT), None)


def of_text(name: str, text: str, **annotations: Any) -> Resource:
    """Return a text as a resource, by its SHA-256 in UTF-8."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Resource(name=name, digest={"sha256": digest}, annotations=annotations or None)


def of_digest(name: str, digest: str | None, uri: str | None = None) -> Resource:
    """Return what is named by a digest such as `sha256:<64 hex>`."""
    algorithm, _, value = (digest or "").partition(":")
    return Resource(name=name, digest={algorithm: value} if value else {}, uri=uri)


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
