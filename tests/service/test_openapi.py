"""The API's description: valid, complete, and strict enough to find what it does not say."""

from __future__ import annotations

import html
import json
import re

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from image_builder.errors import InvalidRequest
from image_builder.request.parsing import parse_request
from service.api.openapi import calls, document
from tests.conftest import PROJECT
from tests.service.conftest import REQUEST, ROOT, Api
from tests.service.described import Description, complaints_of, listening
from tests.service.test_web import Visitor


def test_the_document_is_valid_and_asks_for_no_login(app: Flask) -> None:
    answer = app.test_client().get(f"{ROOT}/openapi.json")
    described = answer.get_json()
    OpenAPIV31SpecValidator(described).validate()
    assert described["openapi"] == "3.1.0"
    assert described["servers"] == [{"url": ROOT}]


def test_every_call_is_described(app: Flask) -> None:
    there = {
        (rule.rule.replace("<", "{").replace(">", "}"), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("api.")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    paths = document(app, "")["paths"]
    assert {(path, method) for path, operations in paths.items() for method in operations} == there
    assert len(there) > 15


def test_a_call_without_a_declaration_is_found(app: Flask) -> None:
    app.view_functions["api.status"] = lambda build_id: ""
    with pytest.raises(KeyError, match=r"api\.status is not described"):
        list(calls(app))


def test_requests_of_the_documents_fit_the_models(app: Flask) -> None:
    schemas = document(app, "")["components"]
    validator = Draft202012Validator(
        {"$ref": "#/components/schemas/PostedRequest", "components": schemas}
    )
    text = (PROJECT / "docs" / "api.md").read_text("utf-8")
    requests = [
        json.loads(block)
        for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        if "step_id" in block
    ]
    machine = REQUEST["machine"]
    requests += [
        REQUEST,
        REQUEST | {"machine": "lumi-c"},
        REQUEST | {"machine": {"name": "lumi-c", "mpi": None}},
        REQUEST | {"force": "False", "push": None, "path": None, "version": "feature/x"},
        REQUEST | {"machine": {**machine, "container_engine": "apptainer"}},
    ]
    assert len(requests) > 5
    for request in requests:
        assert validator.is_valid(request), request


@pytest.mark.parametrize(
    "change",
    [
        {"workflow": "../etc"},
        {"workflow": 7},
        {"workflow": "x" * 201},
        {"step": "x"},
        {"path": "/etc"},
        {"force": 1},
        {"version": "-x"},
        {"machine": None},
        {"machine": {"platform": "linux/amd64"}},
        {"push": "perhaps"},
    ],
)
def test_what_the_model_refuses_is_refused(app: Flask, change: dict[str, object]) -> None:
    schemas = document(app, "")["components"]
    validator = Draft202012Validator(
        {"$ref": "#/components/schemas/PostedRequest", "components": schemas}
    )
    assert not validator.is_valid(REQUEST | change)
    with pytest.raises(InvalidRequest):
        parse_request(REQUEST | change, machines={})


def test_what_is_not_described_is_noticed(app: Flask, ada: Api) -> None:
    build_id = ada.submit()
    status = ada.wait(build_id)
    description = Description(app)

    def complaints(status_code: int, kind: str, body: object) -> list[str]:
        return description.complaints("/build/{build_id}", "GET", status_code, kind, body)

    assert complaints(200, "application/json", status) == []
    assert complaints(200, "application/json", status | {"password": "x"})
    assert complaints(
        200, "application/json", {key: value for key, value in status.items() if key != "image_id"}
    )
    assert complaints(200, "application/json", status | {"status": "DONE"})
    assert complaints(200, "application/json", status | {"created_at": "yesterday"})
    assert complaints(418, "application/problem+json", {})
    assert complaints(200, "text/html", "<p>")
    assert description.problem_complaints({"status": 404})


def test_every_answer_is_listened_to(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    def hear(there: Flask, response: object) -> list[str]:
        heard.append(response)
        return complaints_of(there, response)  # type: ignore[arg-type]

    monkeypatch.setattr("tests.service.described.complaints_of", hear)
    with listening() as complaints:
        app.test_client().get(f"{ROOT}/build/")
        app.test_client().get(f"{ROOT}/nothing")
    assert len(heard) == 4  # the fixture that goes with every test listens, too
    assert complaints == []


def test_the_page_says_the_same_as_the_document(app: Flask) -> None:
    page = Visitor(app).get("/docs")
    assert page.status_code == 200
    described, shown = document(app, ROOT), html.unescape(page.text)
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in shown
            assert operation["summary"] in shown
    names = set(re.findall(r'href="#model-(\w+)"', page.text))
    assert names
    assert (
        names
        <= set(re.findall(r'id="model-(\w+)"', page.text))
        == set(described["components"]["schemas"])
    )
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert re.findall(r"<script(?![^>]*\bsrc=)", page.text) == []
    assert f'href="{ROOT}/docs"' in Visitor(app).get("/login").text
