"""What is in an image: the list of its packages, over REST and as a page, and the graph."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask

from image_builder.proof import sbom
from image_builder.spack import lockfile
from image_builder.timeline import origins
from tests.conftest import DATA
from tests.service.conftest import Api
from tests.service.test_web import Visitor
from tests.unit.proof.test_sbom import FACTS, GRAPH, contents, hash_of

LOCK = (DATA / "locks" / "spack-1.1-cuda-zen2.json").read_text("utf-8")


@pytest.fixture
def image(app: Flask, ada: Api) -> dict[str, Any]:
    """A finished image of the site."""
    return ada.wait(ada.submit())


def keep(app: Flask, image: dict[str, Any], **documents: str) -> None:
    names = {"bill": sbom.FILE, "lock": lockfile.FILE, "told": origins.FILE}
    app.extensions["cic"].images.keep_documents(
        image["identity"], {names[name]: text for name, text in documents.items()}
    )


def bill() -> str:
    return sbom.sbom(FACTS, GRAPH, contents("app", "lib"))


def told(**packages: str) -> str:
    return json.dumps(
        {"packages": {hash_of(name): {"origin": origin} for name, origin in packages.items()}}
    )


def test_the_list_has_versions_licences_and_origins(
    app: Flask, ada: Api, image: dict[str, Any]
) -> None:
    keep(app, image, bill=bill(), told=told(app="built", lib="cached"))
    listed = ada("GET", f"/image/{image['filename']}/packages").get_json()
    assert (listed["source"], listed["total"], listed["pages"]) == (sbom.FILE, 9, 1)
    by_name = {one["name"]: one for one in listed["packages"] if one["kind"] == "spack"}
    assert by_name["app"] == {
        "name": "app",
        "version": "1.0",
        "kind": "spack",
        "licence": "MIT",
        "hash": hash_of("app"),
        "origin": "built",
    }
    assert by_name["lib"]["origin"] == "cached" and by_name["mpi"]["origin"] is None

    page = Visitor(app, "bob").get(f"/images/packages/{image['identity']}")
    assert page.status_code == 200
    assert "libstdc++6" in page.text and "built from source" in page.text
    assert f'id="p-{hash_of("app")}"' in page.text


def test_it_is_searched_and_paged(app: Flask, ada: Api, image: dict[str, Any]) -> None:
    keep(app, image, bill=bill())

    def names(query: str) -> list[str]:
        answer = ada("GET", f"/image/{image['filename']}/packages?{query}")
        assert answer.status_code == 200, answer.text
        return [one["name"] for one in answer.get_json()["packages"]]

    assert names("search=mit") == ["app", "lib", "six"]
    assert names("kind=debian") == ["libstdc++6", "python3-pip"]
    assert names("per_page=2&page=2") == ["lib", "libstdc++6"]
    assert names("per_page=2&page=99") == []
    assert names(f"search={hash_of('app')}") == ["app"]
    page = Visitor(app, "ada").get(f"/images/packages/{image['identity']}?search=<b>").text
    assert "&lt;b&gt;" in page and "<b>" not in page


@pytest.mark.parametrize("query", ["kind=rpm", "page=0", "per_page=1001", "search=" + "x" * 201])
def test_a_wrong_question_is_refused(ada: Api, image: dict[str, Any], query: str) -> None:
    answer = ada("GET", f"/image/{image['filename']}/packages?{query}")
    assert answer.status_code == 400
    assert answer.get_json()["errors"][0]["field"] == query.partition("=")[0]


def test_without_a_bill_the_lockfile_tells_it(app: Flask, ada: Api, image: dict[str, Any]) -> None:
    keep(app, image, lock=LOCK)
    listed = ada("GET", f"/image/{image['filename']}/packages?per_page=1000").get_json()
    graph = lockfile.Graph(json.loads(LOCK))
    assert listed["source"] == lockfile.FILE and listed["total"] == len(list(graph))
    assert {one["licence"] for one in listed["packages"]} == {None}


def test_where_nothing_is_known_it_is_said(app: Flask, ada: Api, image: dict[str, Any]) -> None:
    assert ada("GET", f"/image/{image['filename']}/packages").get_json()["source"] is None
    visitor = Visitor(app, "ada")
    assert "No document tells" in visitor.get(f"/images/packages/{image['identity']}").text
    assert "installed nothing" in visitor.get(f"/images/graph/{image['identity']}").text
    assert "Graph of the environment" not in visitor.get(f"/images/{image['filename']}").text


def test_the_graph_has_a_link_for_every_package(
    app: Flask, ada: Api, image: dict[str, Any]
) -> None:
    graph = lockfile.Graph(json.loads(LOCK))
    built = next(node for node in graph if not node.external)
    known = json.dumps({"packages": {built.hash: {"origin": "cached"}}})
    keep(app, image, lock=LOCK, told=known)
    visitor = Visitor(app, "ada")
    assert "Graph of the environment" in visitor.get(f"/images/{image['filename']}").text
    page = visitor.get(f"/images/graph/{image['identity']}").text
    for node in graph:
        assert f"search={node.hash}#p-{node.hash}" in page
        assert f'id="n-{node.hash}"' in page
    assert f"<title>{built.name} {built.version}, taken from the build cache" in page
    runs = visitor.get(f"/images/graph/{image['identity']}?show=run").text
    assert runs.count('<tr id="n-') < page.count('<tr id="n-')


@pytest.mark.parametrize("lock", ["{}", "no json", '{"roots": [], "concrete_specs": []}'])
def test_a_lockfile_that_cannot_be_read_is_no_error(
    app: Flask, ada: Api, image: dict[str, Any], lock: str
) -> None:
    keep(app, image, lock=lock)
    for page in ("graph", "packages"):
        answer = Visitor(app, "ada").get(f"/images/{page}/{image['identity']}")
        assert answer.status_code == 200
