"""The statement of how an image came about: in-toto's own code reads it and finds it valid."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from image_builder.proof import provenance
from image_builder.proof.provenance import Origin, Resource, Run

ORIGIN = Origin(
    request={"workflow": "demo", "step_id": "hello", "machine": {"platform": "linux/amd64"}},
    identity=f"sha256:{'1' * 64}",
    recipe="1",
    is_slim=False,
    materials=[
        Resource(name="step", digest={"gitTree": "2" * 40, "gitCommit": None}, uri="git+https://x"),
        provenance.of_digest("base image", f"sha256:{'3' * 64}", "base:1"),
    ],
    builder_id="urn:cic:builder",
    byproducts=[provenance.of_text("audit", "{}", ok=True, checks=[{"name": "target"}])],
)
SUBJECTS = [provenance.of_digest("image:1", f"sha256:{'4' * 64}")]
RUN = Run(began_s=1.9, ended_s=61, log=Resource(name="log", digest={"sha256": "5" * 64}))


def read(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    return content


@pytest.mark.parametrize("run", [RUN, None], ids=["document", "sif"])
def test_in_totos_own_code_finds_it_valid(run: Run | None) -> None:
    text = provenance.statement(ORIGIN, SUBJECTS, run)
    parsed = json_format.Parse(text, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    predicate = json.dumps(read(text)["predicate"])
    slsa = json_format.Parse(predicate, provenance_pb2.Provenance())
    assert slsa.build_definition.build_type == provenance.BUILD_TYPE
    assert slsa.run_details.builder.id == "urn:cic:builder"
    assert slsa.run_details.metadata.finished_on.seconds == (61 if run else 0)


def test_it_says_what_was_asked_what_it_was_made_of_and_what_the_audit_found() -> None:
    content = read(provenance.statement(ORIGIN, SUBJECTS, RUN))
    definition = content["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["request"] == ORIGIN.request
    assert definition["internalParameters"]["identity"] == ORIGIN.identity
    assert definition["resolvedDependencies"] == [
        {"name": "step", "uri": "git+https://x", "digest": {"gitTree": "2" * 40}},
        {"name": "base image", "uri": "base:1", "digest": {"sha256": "3" * 64}},
    ]
    audit, log = content["predicate"]["runDetails"]["byproducts"]
    assert audit["annotations"]["ok"] is True and log["digest"] == {"sha256": "5" * 64}
    assert content["predicate"]["runDetails"]["metadata"] == {
        "startedOn": "1970-01-01T00:00:01Z",
        "finishedOn": "1970-01-01T00:01:01Z",
    }


def test_that_of_a_sif_says_neither_a_time_nor_a_log() -> None:
    text = provenance.statement(ORIGIN, SUBJECTS)
    assert text == provenance.statement(dataclasses.replace(ORIGIN), list(SUBJECTS))
    details = read(text)["predicate"]["runDetails"]
    assert "metadata" not in details and len(details["byproducts"]) == 1


def test_a_statement_is_about_what_is_made_later_too() -> None:
    first = provenance.statement(ORIGIN, SUBJECTS, RUN)
    sif = Resource(name="a.sif", digest={"sha256": "6" * 64})
    later = provenance.with_subjects(first, [*SUBJECTS, sif])
    assert read(later)["subject"] == [*read(first)["subject"], sif.as_dict()]
    assert read(later)["predicate"] == read(first)["predicate"]
    assert provenance.with_subjects(later, [sif]) == later
    assert provenance.verdict_in(later) == {"ok": True, "checks": [{"name": "target"}]}
    without = dataclasses.replace(ORIGIN, byproducts=[])
    assert provenance.verdict_in(provenance.statement(without, SUBJECTS)) is None
