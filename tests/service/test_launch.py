"""What starts an image on a machine, over REST and on the pages."""

from __future__ import annotations

import html

import pytest
from flask import Flask

from image_builder.launch.script import KINDS
from service.db import tables
from service.db.database import writing
from tests.service.conftest import REQUEST, Api, FakeBuilder
from tests.service.test_web import Visitor

MPICH = {
    "cic.platform": "linux/amd64",
    "cic.target": "x86_64",
    "cic.mpi.name": "mpich",
    "cic.mpi.family": "mpich",
    "cic.mpi.version": "4.2.3",
}


@pytest.fixture
def filename(ada: Api, builder: FakeBuilder) -> str:
    builder.labels = dict(MPICH)
    name: str = ada.wait(ada.submit())["filename"]
    return name


def test_a_job_script_comes_with_what_a_check_found(ada: Api, filename: str) -> None:
    query = {"machine": "lumi-c", "program": "lmp -in 'my file'", "processes": "64"}
    answer = ada("GET", f"/image/{filename}/script", query_string=query)
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "text/plain; charset=utf-8"
    assert filename.removesuffix(".sif") + ".sh" in answer.headers["Content-Disposition"]
    lines = answer.text.splitlines()
    assert lines[0] == "#!/bin/bash" and "#SBATCH --ntasks=64" in lines
    assert any(line.startswith("# warning: The image has mpich 4.2.3") for line in lines)
    assert "set -- lmp -in 'my file'" in lines
    assert lines[-1] == f'srun --mpi=pmi2 singularity exec {filename} "$@"'


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_had_for_any_machine_with_slurm(ada: Api, filename: str, kind: str) -> None:
    answer = ada("GET", f"/image/{filename}/script?machine=alps-daint&kind={kind}")
    assert answer.status_code == 200 and answer.text
    image_id = ada("GET", f"/image/{filename}").json["image_id"]
    assert filename in answer.text or image_id.partition("/")[2] in answer.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"machine": "lumi-c", "kind": "pbs"}, "kind"),
        ({"machine": "fugaku", "kind": "slurm"}, "kind"),
        ({"machine": "lumi-c", "program": "a 'b"}, "program"),
        ({"machine": "lumi-c", "program": "a\nb"}, "program"),
        ({"machine": "lumi-c", "program": "a;b", "kind": "module"}, "program"),
        ({"machine": "lumi-c", "processes": "0"}, "processes"),
        ({"machine": "lumi-c", "processes": "many"}, "processes"),
        ({"machine": "lumi-c", "launcher": "srun 'x"}, "launcher"),
        ({"machine": "lumi-d"}, "machine"),
        ({}, "machine"),
        ({"machine": "lumi-c", "colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_started_is_refused(
    ada: Api, filename: str, query: dict[str, str], field: str
) -> None:
    answer = ada("GET", f"/image/{filename}/script", query_string=query)
    assert answer.status_code == 400, answer.text
    [error] = answer.json["errors"]
    assert error["field"] == field and error["hint"]


def test_an_image_that_is_not_there_has_no_script(ada: Api) -> None:
    assert ada("GET", "/image/none.sif/script?machine=lumi-c").status_code == 404


def test_the_page_shows_what_rest_gives(app: Flask, ada: Api, filename: str) -> None:
    visitor = Visitor(app, "ada")
    for kind in ("slurm", "edf", "module"):
        query = f"machine=alps-eiger&kind={kind}"
        text = ada("GET", f"/image/{filename}/script?{query}").text
        assert text in html.unescape(visitor.get(f"/images/{filename}?{query}").text)
    page = visitor.get(f"/images/{filename}?machine=fugaku&kind=slurm").text
    assert "has no such script" in page
    assert "has no such script" not in visitor.get(f"/images/{filename}?machine=lumi-c").text


def test_an_image_of_docker_has_scripts_on_its_page(
    app: Flask, ada: Api, builder: FakeBuilder
) -> None:
    builder.labels = dict(MPICH)
    machine = {**REQUEST["machine"], "container_engine": "docker"}
    image_id = ada.wait(ada.submit(machine=machine))["image_id"]
    visitor = Visitor(app, "ada")
    with writing(visitor.engine) as connection:
        connection.execute(tables.BUILDS.update().values(pushed_digest="sha256:" + "2" * 64))
    page = visitor.get(f"/images/docker/{image_id}?machine=lumi-c&kind=slurm").text
    assert f"docker://{image_id}" in html.unescape(page)


def test_a_check_takes_facts_of_the_machine_and_says_what_is_not_known(
    ada: Api, builder: FakeBuilder
) -> None:
    known = {"cic.facts": "1", "cic.kernel.min": "3.2.0", "cic.mpi.pmi": "pmi2"}
    builder.labels = MPICH | known
    name = ada.wait(ada.submit())["filename"]
    there = {"platform": "linux/amd64", "mpi": "mpich@4", "pmi": "pmi2", "libfabric": "cxi"}
    answer = ada("GET", f"/image/{name}/check", query_string={**there, "kernel": "3.1"}).json
    assert (answer["ok"], answer["answer"]) == (False, "does_not_run")
    assert [one["rule"] for one in answer["findings"]] == [
        "kernel-too-old",
        "network-not-known-to-image",
    ]
    assert "glibc" in answer["unknown"][0] and "kernel" not in answer["unknown"][0]
    refused = ada("GET", f"/image/{name}/check", query_string={**there, "kernel": "3.1; reboot"})
    assert refused.status_code == 400 and refused.json["errors"][0]["field"] == "kernel"


def test_an_image_of_before_keeps_its_answer_and_says_so(ada: Api, filename: str) -> None:
    query = {"platform": "linux/amd64", "mpi": "mpich@4", "pmi": "pmi2", "kernel": "3.1"}
    answer = ada("GET", f"/image/{filename}/check", query_string=query).json
    assert answer["answer"] == "runs" and "before its files were looked at" in answer["unknown"][0]
