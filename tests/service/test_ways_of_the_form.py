"""The form for a new build: packages, a description, a folder or a repository of the user's own."""

from __future__ import annotations

import io
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from tests.service.conftest import ROOT, Api, FakeBuilder, running_app
from tests.service.test_uploads import FILES, packed
from tests.service.test_web import Visitor, csrf_token
from tests.support.site import MACHINE, Site


def submit(visitor: Visitor, **fields: Any) -> TestResponse:
    """Fill in the form and send it, as a browser does whose user chose no file."""
    token = csrf_token(visitor.get("/builds/new"))
    return visitor.client.post(
        f"{ROOT}/builds/new",
        data={"csrf_token": token, "push": "no", "version": "latest", **MACHINE, **fields},
        headers={"Accept": "text/html"},
        content_type="multipart/form-data",
    )


def built(visitor: Visitor, user: Api, **fields: Any) -> dict[str, Any]:
    answer = submit(visitor, **fields)
    assert answer.status_code == 302, answer.text
    return user.wait(answer.location.rpartition("/")[2])


def test_packages_and_descriptions(app: Flask, ada: Api) -> None:
    visitor = Visitor(app, "ada")
    short = built(visitor, ada, what="own", packages="hdf5+mpi\n\n  fftw \n", name="tools")
    assert short["request"]["packages"] == ["hdf5+mpi", "fftw"]
    text = "spack:\n  specs: [hdf5+mpi, fftw]\n"
    long = built(visitor, ada, what="own", description=text, name="tools")
    assert long["image_id"] == short["image_id"]
    again = visitor.get(f"/builds/new?from={long['id']}").text
    assert "    - hdf5+mpi\n" in again and 'value="tools"' in again
    again = visitor.get(f"/builds/new?from={short['id']}").text
    assert "hdf5+mpi\nfftw</textarea>" in again.replace("\r", "")


def test_a_folder(app: Flask, ada: Api) -> None:
    archive = (io.BytesIO(packed(dict(FILES))), "step.tar")
    status = built(Visitor(app, "ada"), ada, what="folder", archive=archive, name="mine")
    assert len(status["request"]["folder"]) == 40 and status["visibility"] == "private"


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"what": "own"}, ["Must be a list of specs"]),
        ({"what": "own", "packages": "hdf5 zlib"}, ["Entry 0: ", "holds two specs"]),
        ({"what": "own", "description": "apt: [-x]\n"}, ["Apt[0]: "]),
        ({"what": "own", "description": "apt: [\n"}, ["is not valid YAML"]),
        ({"what": "own", "description": "- a\n"}, ["Must be an object"]),
        ({"what": "own", "description": "apt: [bc]", "packages": "fftw"}, ["beside description"]),
        ({"what": "own", "packages": "fftw", "name": "../x"}, ["is not allowed here"]),
        ({"what": "folder"}, ["Is missing"]),
        ({"what": "folder", "archive": "text"}, ["Is missing"]),
        ({"what": "nothing"}, ["Is missing"]),
    ],
)
def test_what_is_wrong_is_said_at_its_field(
    app: Flask, fields: dict[str, Any], texts: list[str]
) -> None:
    page = submit(Visitor(app, "ada"), **fields)
    assert page.status_code == 400
    for text in texts:
        assert text in page.text


def test_an_archive_that_is_none_is_told(app: Flask) -> None:
    archive = (io.BytesIO(b"no tar"), "step.tar")
    page = submit(Visitor(app, "ada"), what="folder", archive=archive)
    assert page.status_code == 400 and "is no tar archive" in page.text


def test_a_repository_is_offered_where_hosts_are_allowed(
    app: Flask, site: Site, builder: FakeBuilder, tmp_path: Any
) -> None:
    assert "A repository of mine" not in Visitor(app, "ada").get("/builds/new").text
    other = site.with_environ(
        CIC_REPOSITORIES_ALLOWED_GIT_HOSTS="127.0.0.1",
        CIC_DATABASE=f"sqlite:///{tmp_path / 'other.sqlite'}",
    )
    with running_app(other.settings, builder) as allowing:
        visitor = Visitor(allowing, "ada")
        assert "A repository of mine" in visitor.get("/builds/new").text
        page = submit(visitor, what="repository", repository="https://git.example.org/x/y")
        assert page.status_code == 400
        assert "Git does not talk to git.example.org here" in page.text
