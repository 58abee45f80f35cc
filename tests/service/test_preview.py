"""What would be built, as the form's script asks for it while one types."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from service.errors import Busy
from tests.service.conftest import PASSWORD, ROOT
from tests.service.test_web import NEW_BUILD, Visitor, csrf_token

PREVIEW = "/builds/new/preview"


def preview(visitor: Visitor, **changes: str) -> dict[str, Any]:
    """What the script gets for these fields."""
    answer = visitor.client.post(
        ROOT + PREVIEW,
        data={**NEW_BUILD, **changes, "csrf_token": csrf_token(visitor.get("/builds/new"))},
        headers={"Accept": "application/json"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.mimetype == "application/json"
    return dict(answer.get_json())


def test_a_step_is_planned_and_nothing_is_built(app: Flask, builder: Any) -> None:
    visitor = Visitor(app, "ada")
    answer = preview(visitor, architecture="rome")
    assert answer["wrong"] == {} and answer["others"] == []
    assert "demo_hello_rome" in answer["html"] and "zen2" in answer["html"]
    assert "<details" in answer["html"] and "FROM" in answer["html"]
    assert builder.calls == []
    assert "You have no builds yet" in visitor.get("/builds").text


def test_packages_show_their_spack_yaml(app: Flask) -> None:
    answer = preview(Visitor(app, "ada"), what="own", packages="zlib\nfftw~mpi")
    assert "fftw~mpi" in answer["html"] and "spack.yaml" in answer["html"]


def test_what_is_wrong_comes_with_its_field(app: Flask) -> None:
    answer = preview(Visitor(app, "ada"), architecture="romee", mpi="$(mpi)")
    assert set(answer["wrong"]) == {"architecture", "mpi"} and answer["html"] == ""
    assert "rome" in answer["wrong"]["architecture"]
    answer = preview(Visitor(app, "ada"), step_id="helo")
    assert "hello" in answer["wrong"]["step_id"]


def test_a_folder_is_not_looked_at(app: Flask) -> None:
    answer = preview(Visitor(app, "ada"), what="folder")
    assert answer == {"html": "", "wrong": {}, "others": []}


def test_what_was_typed_is_no_markup(app: Flask) -> None:
    answer = preview(Visitor(app, "ada"), what="own", packages="zlib", name="<b>")
    assert "<b>" not in answer["html"]


def test_too_many_at_once_are_told_to_wait(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any, **__: Any) -> None:
        raise Busy("Many requests are being looked up at the moment.")

    monkeypatch.setattr(type(app.extensions["cic"].submission), "plan", busy)
    visitor = Visitor(app, "ada")
    data = {**NEW_BUILD, "csrf_token": csrf_token(visitor.get("/builds/new"))}
    answer = visitor.client.post(ROOT + PREVIEW, data=data)
    assert answer.status_code == 429 and "Many requests" in answer.text


def test_it_needs_a_login_and_the_forms_token(app: Flask) -> None:
    asked = {"headers": {"Accept": "application/json"}}
    stranger = Visitor(app)
    token = csrf_token(stranger.get("/login"))
    data = {**NEW_BUILD, "csrf_token": token}
    assert stranger.client.post(ROOT + PREVIEW, data=data, **asked).status_code == 401
    visitor = Visitor(app, "ada")
    assert visitor.client.post(ROOT + PREVIEW, data=NEW_BUILD, **asked).status_code == 400
    assert PASSWORD not in visitor.get("/builds/new").text


def test_the_page_shows_a_plan_without_any_script(app: Flask) -> None:
    page = Visitor(app, "ada").post(
        "/builds/new", NEW_BUILD | {"action": "plan"}, form="/builds/new"
    )
    assert 'id="plan"' in page.text and "<details open" in page.text
    assert f'data-preview="{ROOT}{PREVIEW}"' in page.text
