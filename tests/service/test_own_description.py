"""Requests that describe what is built, over REST and on the pages, and without the service."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import Engine

import cic_builder
from service.db import builds
from tests.service.conftest import REQUEST, Api, FakeBuilder
from tests.service.test_web import Visitor
from tests.support.site import MACHINE, Site

OWN = {"machine": MACHINE, "push": False}
BC = {"apt": ["bc"], "slim": False}


def plan(user: Api, **fields: Any) -> dict[str, Any]:
    answer = user("POST", "/build/plan", json=OWN | fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.get_json())


def submit(user: Api, **fields: Any) -> str:
    answer = user("POST", "/build/", json=OWN | fields)
    assert answer.status_code == 200, answer.text
    return str(answer.get_json()["id"])


def wrong_fields(user: Api, **fields: Any) -> set[str]:
    answer = user("POST", "/build/", json=OWN | fields)
    assert answer.status_code == 400, answer.text
    return {error["field"] for error in answer.get_json()["errors"]}


def run_of(engine: Engine, build_id: str) -> str:
    row = builds.build(engine, build_id)
    assert row is not None
    return str(row.run_id)


def test_a_description_is_built(ada: Api, builder: FakeBuilder) -> None:
    status = ada.wait(submit(ada, description=BC, name="tools"))
    assert status["status"] == "FINISHED"
    assert status["request"]["description"] == BC
    assert "own_tools_" in status["filename"]
    assert builder.calls[0].step_name == "tools"


def test_it_is_what_a_step_of_the_registry_with_its_text_is(
    ada: Api, bob: Api, site: Site, builder: FakeBuilder
) -> None:
    planned = plan(ada, description=BC, name="demo/calculator")
    site.add_step("demo", "calculator", {"eflows4hpc.yaml": planned["description_yaml"]})
    step = plan(ada, workflow="demo", step_id="calculator")
    assert "description_yaml" not in step
    assert step["dockerfile"] == planned["dockerfile"]
    builder.hold.clear()
    first = submit(ada, description=BC, name="demo/calculator")
    second = submit(bob, workflow="demo", step_id="calculator")
    third = submit(ada, description=BC, name="demo/another")
    engine = ada.app.extensions["cic"].engine
    runs = [run_of(engine, build_id) for build_id in (first, second, third)]
    assert runs[0] == runs[1] != runs[2]
    builder.hold.set()
    assert ada.wait(first)["filename"] != bob.wait(second)["filename"]


def test_the_same_request_twice_shares_its_run(ada: Api, builder: FakeBuilder) -> None:
    builder.hold.clear()
    first = submit(ada, packages=["fftw"])
    second = submit(ada, description={"spack": {"specs": ["fftw"]}})
    builder.hold.set()
    assert ada.wait(first)["filename"] == ada.wait(second)["filename"]
    assert len(builder.calls) == 1


def test_both_ways_at_once_are_refused_by_name(ada: Api) -> None:
    assert wrong_fields(ada, description=BC, workflow="demo", step_id="hello") == {
        "description",
        "workflow",
        "step_id",
    }


def test_all_that_is_wrong_is_said_at_once(ada: Api) -> None:
    answer = ada(
        "POST",
        "/build/",
        json={
            "machine": {**MACHINE, "mpi": "OpenMPI 4"},
            "description": {"spack": {"specs": ["fftw", "hdf5 1.14"]}, "apt": ["-o=x"]},
            "pusch": True,
        },
    )
    fields = [error["field"] for error in answer.get_json()["errors"]]
    assert fields == [
        "machine.mpi",
        "description.apt[0]",
        "description.spack.specs[1]",
        "pusch",
    ]
    assert all(error["hint"] for error in answer.get_json()["errors"])


@pytest.mark.parametrize(
    "body",
    [
        b'{"description": ' + b"[" * 50_000,
        b'{"machine": "x", "description": {"apt": ' + b"[" * 500 + b"]" * 500 + b"}}",
        b'{"machine": "x", "description": {"slim": 1e999}}',
        b'{"machine": "x", "description": {"apt": ["\\ud800"]}}',
        b'{"machine": "x", "description": {"apt": [' + b'"a",' * 200_000 + b'"a"]}}',
        b'{"machine": "x", "packages": [' + b'{"matrix": [["a"]]},' * 30_000 + b'"a"]}',
    ],
)
def test_hostile_descriptions_are_refused(ada: Api, body: bytes) -> None:
    answer = ada("POST", "/build/", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text


def test_a_build_page_names_it_and_asks_again(app: Flask, ada: Api) -> None:
    build_id = submit(ada, packages=["fftw"], name="flows/solver")
    ada.wait(build_id)
    visitor = Visitor(app, "ada")
    page = visitor.get(f"/builds/{build_id}").text
    assert "flows/solver" in page and "Own description" in page
    assert "flows / solver" in visitor.get("/builds").text
    again = visitor.post(f"/builds/{build_id}/retry", {})
    assert again.status_code == 302
    assert again.location.rpartition("/")[2] != build_id
    ada.wait(again.location.rpartition("/")[2])


def test_the_builder_without_the_service_takes_one(
    site: Site, tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"machine": MACHINE, "description": BC, "name": "demo/hello"}))
    for name, value in site.environ.items():
        if name.startswith("CIC_"):
            monkeypatch.setenv(name, value)
    assert cic_builder.main(["--request", str(request), "--plan"]) == 0
    assert "demo_hello_" in capsys.readouterr().out
    request.write_text(json.dumps(REQUEST | {"description": BC}))
    assert cic_builder.main(["--request", str(request), "--plan"]) == 2
    assert "description: stands beside workflow and step_id" in capsys.readouterr().err
