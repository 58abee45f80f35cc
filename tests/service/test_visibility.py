"""Who sees which image: private ones, shared ones, and those of the site, over every route."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.errors import InvalidRequest
from image_builder.request.build_request import BuildRequest
from image_builder.sources.own_description import parse_any_request
from service import downloads
from service.cleanup import Cleanup
from service.db import accounts, groups, shares
from service.db.database import now, writing
from service.db.shares import Audience
from tests.service.conftest import PASSWORD, ROOT, Api, FakeBuilder, running_app
from tests.service.test_access import PUBLIC, routes
from tests.service.test_web import Visitor, csrf_token
from tests.support.site import MACHINE, Site

OF_IMAGES = {"filename", "identity", "image_id"}
MAY_SEE = {
    "ada": {"private", "shared", "site"},
    "bob": {"shared", "site"},
    "dan": {"shared", "site"},
    "carol": {"site"},
    "root": {"site"},
}
"""Ada owns all three images, and shares one with Bob and with a group, in which Dan is; Root is an
administrator, and Carol was in the group.
"""
GROUP = "urn:example:group:climate"
BODIES = {"api.share": {"users": ["bob"]}}


@dataclasses.dataclass(frozen=True)
class Stored:
    """The names of an image: as a SIF, and without one in Docker."""

    filename: str
    sha256: str
    identity: str
    image_id: str

    def arguments(self) -> dict[str, str]:
        return {
            "filename": self.filename,
            "identity": self.identity,
            "image_id": self.image_id,
            "name": "spack.yaml",
        }


@pytest.fixture
def engine(app: Flask) -> Engine:
    return app.extensions["cic"].engine


@pytest.fixture
def stored(app: Flask, ada: Api, engine: Engine, builder: FakeBuilder) -> dict[str, Stored]:
    """Ada's private image, the one that she shares with Bob, and one of the site."""
    builder.by_tree = True
    groups.add(engine, GROUP)
    for name in ("carol", "dan"):
        accounts.add_user(engine, name, PASSWORD)
    for name in ("ada", "carol", "dan"):
        groups.join(engine, GROUP, name)
    groups.leave(engine, GROUP, "carol")
    images = {
        "private": made(ada, {"packages": ["fftw"]}),
        "shared": made(ada, {"packages": ["hdf5"]}),
        "site": made(ada, {"workflow": "demo", "step_id": "hello"}),
    }
    audience = {"users": ["Bob"], "groups": [GROUP]}
    answer = ada("POST", f"/image/{images['shared'].filename}/share", json=audience)
    assert answer.status_code == 204, answer.text
    owner = accounts.by_name(engine, "ada").id
    shares.share(engine, owner, images["shared"].image_id, Audience(users=["bob"], groups=[GROUP]))
    return images


def made(user: Api, what: dict[str, Any]) -> Stored:
    request = {"machine": MACHINE, "push": False, **what}
    status = user.wait(post(user, request))
    docker = user.wait(post(user, request | {"machine": {**MACHINE, "container_engine": "docker"}}))
    images = user.app.extensions["cic"].images
    images.keep_documents(status["identity"], {"spack.yaml": "spack: {}\n"})
    return Stored(status["filename"], status["sha256"], status["identity"], docker["image_id"])


def post(user: Api, request: dict[str, Any]) -> str:
    answer = user("POST", "/build/", json=request)
    assert answer.status_code == 200, answer.text
    return str(answer.get_json()["id"])


class Asking:
    """One user who asks as a program and as a browser."""

    def __init__(self, app: Flask, user: str) -> None:
        self.program, self.visitor = Api(app, user), Visitor(app, user)
        self.token = csrf_token(self.visitor.get("/account"))

    def __call__(self, route: Any, arguments: dict[str, str]) -> tuple[int, str]:
        """What is answered at a route; of programs' answers the text without the names asked for."""
        path = route.path(**arguments).removeprefix(ROOT)
        if not route.endpoint.startswith("api."):
            data = {"csrf_token": self.token, "users": "bob"} if route.method == "POST" else None
            page = self.visitor.client.open(ROOT + path, method=route.method, data=data)
            return page.status_code, ""
        query = "?machine=lumi-c" if "check" in path or "script" in path else ""
        answer = self.program(route.method, path + query, json=BODIES.get(route.endpoint))
        text = "" if route.method == "HEAD" else answer.text
        for value in arguments.values():
            text = text.replace(value, "NAME")
        return answer.status_code, text


def test_every_route_obeys_who_may_see_an_image(app: Flask, stored: dict[str, Stored]) -> None:
    tried = set()
    users = {name: Asking(app, name) for name in MAY_SEE}
    for route in routes(app):
        if route.endpoint in PUBLIC or not route.arguments & OF_IMAGES:
            continue
        for user, visible in MAY_SEE.items():
            none = users[user](route, unknown(stored["private"]))
            for kind, image in stored.items():
                if route.endpoint.endswith(".share") and user == "ada":
                    continue  # it would change what is tested
                answer = users[user](route, image.arguments())
                if kind in visible:
                    assert answer[0] != 404, (user, kind, route)
                else:
                    assert answer == none, (user, kind, route)
                    assert answer[0] in (403, 404), (user, kind, route)
        tried.add(route.endpoint)
    assert {
        "api.image",
        "api.document_of",
        "api.check",
        "api.script_of",
        "api.download",
        "api.pin",
        "api.share",
        "api.packages_of",
        "web.image",
        "web.image_of_docker",
        "web.document",
        "web.packages",
        "web.graph",
        "web.download",
        "web.share",
    } <= tried


def unknown(image: Stored) -> dict[str, str]:
    """Names of the same kind that nothing has."""
    return {
        "filename": image.filename.replace("_x86_64_", "_zen9_"),
        "identity": "sha256:" + "e" * 64,
        "image_id": image.image_id.replace("_x86_64_", "_zen9_"),
        "name": "spack.yaml",
    }


def test_lists_hold_what_a_user_may_see(app: Flask, stored: dict[str, Stored]) -> None:
    for user, visible in MAY_SEE.items():
        listed = Api(app, user)("GET", "/image/").get_json()["images"]
        assert {one["filename"]: one["visibility"] for one in listed} == {
            stored[kind].filename: "site" if kind == "site" else "private" for kind in visible
        }
        for path in ("/images", "/images?search=x86_64", "/images?search=ada"):
            page = Visitor(app, user).get(path).text
            for kind in stored.keys() - visible:
                assert stored[kind].filename not in page, (user, kind, path)
                assert stored[kind].image_id not in page, (user, kind, path)
        whole = Visitor(app, user).get("/images").text
        assert all(stored[kind].image_id in whole for kind in visible), user


def test_a_digest_is_no_way_around(app: Flask, stored: dict[str, Stored]) -> None:
    for user, visible in MAY_SEE.items():
        for kind, image in stored.items():
            for name in (stored["site"].filename, "any.sif"):
                answer = Api(app, user)("GET", f"/images/download/{name}?sha256={image.sha256}")
                assert answer.status_code == (200 if kind in visible else 404), (user, kind)


def test_a_sif_that_is_the_sites_too_is_everybodys(app: Flask, stored: dict[str, Stored]) -> None:
    """What Ada described, somebody now puts into the registry: the same identity, for all."""
    private = stored["private"]
    path = f"/images/download/any.sif?sha256={private.sha256}"
    assert Api(app, "carol")("GET", path).status_code == 404
    made(Api(app, "bob"), {"packages": ["fftw"], "visibility": "site"})
    assert Api(app, "carol")("GET", path).status_code == 200
    assert Api(app, "carol")("GET", f"/image/{private.filename}").status_code == 404


def test_each_user_has_the_private_image_under_a_name_of_their_own(
    app: Flask, ada: Api, bob: Api, builder: FakeBuilder
) -> None:
    hers, his = made(ada, {"packages": ["fftw"]}), made(bob, {"packages": ["fftw"]})
    assert hers.sha256 == his.sha256 and hers.identity == his.identity
    assert hers.filename.startswith("ada---own_image_") and his.filename.startswith("bob---")
    assert bob("GET", f"/image/{hers.filename}").status_code == 404
    assert bob("GET", f"/image/{his.filename}").status_code == 200


def test_only_the_owner_shares(app: Flask, ada: Api, bob: Api, stored: dict[str, Stored]) -> None:
    shared, private = stored["shared"].filename, stored["private"].filename
    assert bob("POST", f"/image/{shared}/share", json={"users": ["carol"]}).status_code == 403
    assert bob("POST", f"/image/{private}/share", json={"users": ["bob"]}).status_code == 404
    site = stored["site"].filename
    assert ada("POST", f"/image/{site}/share", json={"users": ["bob"]}).status_code == 400
    assert ada("GET", f"/image/{shared}").get_json()["shared_with"] == ["bob"]
    assert bob("GET", f"/image/{shared}").get_json()["shared_with"] is None
    wrong = ada("POST", f"/image/{private}/share", json={"users": ["bob", "nobody", "x y"]})
    assert [error["field"] for error in wrong.get_json()["errors"]] == ["users[1]", "users[2]"]
    assert bob("GET", f"/image/{private}").status_code == 404


def test_whoever_leaves_a_group_loses_its_images(
    app: Flask, stored: dict[str, Stored], engine: Engine
) -> None:
    dan, shared = Api(app, "dan"), stored["shared"]
    by_digest = f"/images/download/any.sif?sha256={shared.sha256}"
    assert dan("GET", by_digest).status_code == 200
    assert dan("GET", "/group/").get_json() == {"groups": [GROUP]}
    groups.leave(engine, GROUP, "dan")
    for path in (
        f"/image/{shared.filename}",
        f"/image/{shared.filename}/document/spack.yaml",
        f"/images/download/{shared.filename}",
        by_digest,
    ):
        assert dan("GET", path).status_code == 404, path
    assert [one["visibility"] for one in dan("GET", "/image/").get_json()["images"]] == ["site"]
    assert dan("GET", "/group/").get_json() == {"groups": []}


def test_what_a_provider_says_of_a_group_ends_by_itself(
    app: Flask, stored: dict[str, Stored], engine: Engine
) -> None:
    dan, path = Api(app, "dan"), f"/image/{stored['shared'].filename}"
    groups.leave(engine, GROUP, "dan")
    user_id = accounts.by_name(engine, "dan").id
    owner = accounts.by_name(engine, "ada").id
    for ends_in_s, status in ((60, 200), (-1, 404)):
        until = now() + datetime.timedelta(seconds=ends_in_s)
        with writing(engine) as connection:
            for one in (user_id, owner):
                assert groups.replace_claimed(connection, one, ["grid"], until) == []
        if status == 200:
            audience = Audience(groups=["grid"])
            shares.share(engine, owner, stored["shared"].image_id, audience)
        assert dan("GET", path).status_code == status


def test_a_provider_does_not_fill_a_group_of_the_operator(
    app: Flask, stored: dict[str, Stored], engine: Engine
) -> None:
    user_id, until = accounts.by_name(engine, "carol").id, now() + datetime.timedelta(days=1)
    with writing(engine) as connection:
        left_out = groups.replace_claimed(connection, user_id, [GROUP, "grid"], until)
    assert left_out == [GROUP]
    carol = Api(app, "carol")
    assert carol("GET", "/group/").get_json() == {"groups": ["grid"]}
    assert carol("GET", f"/image/{stored['shared'].filename}").status_code == 404


def test_a_build_and_its_log_are_its_owners_whoever_sees_the_image(
    app: Flask, ada: Api, stored: dict[str, Stored]
) -> None:
    of_image = {
        one["id"]
        for one in ada("GET", "/build/").get_json()["builds"]
        if one["filename"] == stored["shared"].filename
    }
    assert of_image
    for user in MAY_SEE.keys() - {"ada"}:
        other = Api(app, user)
        for build_id in of_image:
            for path in (f"/build/{build_id}", f"/build/{build_id}/log"):
                for kind in ("application/json", "text/plain", "text/event-stream"):
                    assert other("GET", path, headers={"Accept": kind}).status_code == 404


def test_an_image_is_shared_with_groups_of_ones_own(
    app: Flask, ada: Api, stored: dict[str, Stored], engine: Engine
) -> None:
    groups.add(engine, "secret")
    private, shared = stored["private"].filename, stored["shared"].filename
    share = {"users": [], "groups": [GROUP, "secret", "none"]}
    wrong = ada("POST", f"/image/{private}/share", json=share)
    assert [error["field"] for error in wrong.get_json()["errors"]] == ["groups[1]", "groups[2]"]
    assert len({error["problem"] for error in wrong.get_json()["errors"]}) == 1
    answer = ada("GET", f"/image/{shared}").get_json()
    assert (answer["shared_with"], answer["shared_with_groups"]) == (["bob"], [GROUP])
    assert Api(app, "dan")("GET", f"/image/{shared}").get_json()["shared_with_groups"] is None
    groups.leave(engine, GROUP, "ada")  # what is shared stays so, until she says otherwise
    assert Api(app, "dan")("GET", f"/image/{shared}").status_code == 200
    assert (
        ada("POST", f"/image/{shared}/share", json={"users": [], "groups": [GROUP]}).status_code
        == 204
    )
    visitor = Visitor(app, "ada")
    assert GROUP in visitor.get(f"/images/{shared}").text
    assert visitor.post(f"/images/{shared}/share", {"users": "", "groups": ""}).status_code == 302
    assert Api(app, "dan")("GET", f"/image/{shared}").status_code == 404


def test_sharing_ends_when_the_owner_says_so_or_deletes_the_build(
    app: Flask, ada: Api, bob: Api, stored: dict[str, Stored]
) -> None:
    shared, private = stored["shared"].filename, stored["private"].filename
    assert ada("POST", f"/image/{shared}/share", json={"users": []}).status_code == 204
    assert bob("GET", f"/image/{shared}").status_code == 404
    visitor = Visitor(app, "ada")
    form = {"users": "Bob, carol"}
    assert visitor.post(f"/images/{private}/share", form).status_code == 302
    assert "bob, carol" in visitor.get(f"/images/{private}").text
    assert bob("GET", f"/image/{private}").status_code == 200
    for one in ada("GET", "/build/").get_json()["builds"]:
        if one["filename"] == private:
            assert ada("DELETE", f"/build/{one['id']}").status_code == 204
    assert bob("GET", f"/image/{private}").status_code == 404
    assert ada("GET", f"/image/{private}").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"users": "bob"}',
        b'{"users": [1, ""]}',
        b"\xff",
        b'{"users": [' + b'"a",' * 200 + b'"a"]}',
        b'{"user": ["bob"]}',
        b'{"groups": ["grid"]}',
        b'{"users": [], "groups": "grid"}',
        b'{"users": [], "groups": [""]}',
    ],
)
def test_wrong_bodies_of_a_share_are_refused(
    ada: Api, stored: dict[str, Stored], body: bytes
) -> None:
    path = f"/image/{stored['private'].filename}/share"
    answer = ada("POST", path, data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.get_json()["errors"], answer.text


def test_the_operators_public_folder_has_no_private_image(
    app: Flask, stored: dict[str, Stored], tmp_path: Any
) -> None:
    downloads.offer_all_publicly(app.extensions["cic"].images, tmp_path / "tmp", is_wanted=True)
    (tmp_path / "public").mkdir()
    downloads.offer_all_publicly(app.extensions["cic"].images, tmp_path / "public", is_wanted=True)
    assert {path.name for path in (tmp_path / "public").iterdir()} == {stored["site"].filename}


def test_clean_up_takes_a_private_image_that_nobody_has(
    app: Flask, ada: Api, engine: Engine, settings: Settings, stored: dict[str, Stored]
) -> None:
    for one in ada("GET", "/build/").get_json()["builds"]:
        assert ada("DELETE", f"/build/{one['id']}").status_code == 204
    limits = settings.service.model_copy(update={"keep_unreferenced_s": 0})
    changed = settings.model_copy(update={"service": limits})
    cleanup = Cleanup(engine, changed, app.extensions["cic"].images, grace_s=-1)
    removed = {item.name.split()[0] for item in cleanup.run(dry_run=True) if item.kind == "SIF"}
    assert removed == {stored["private"].filename, stored["shared"].filename}


def request_of(**fields: Any) -> BuildRequest:
    return parse_any_request({"machine": MACHINE, "packages": ["fftw"], **fields})


def test_private_images_go_to_private_registries_alone(site: Site, builder: FakeBuilder) -> None:
    """The registry need not answer: whether a push is wanted is decided before."""
    pushing = {"machine": MACHINE, "packages": ["fftw"]}
    open_to_all = site.with_environ(CIC_REGISTRY_URL="registry.test")
    with running_app(open_to_all.settings, builder) as app:
        ada = Api(app)
        status = ada.status(post(ada, pushing))
        assert status["push"] is False
        assert any("is private" in warning for warning in status["warnings"])
        refused = ada("POST", "/build/", json=pushing | {"push": True})
        assert [error["field"] for error in refused.get_json()["errors"]] == ["push"]
        shown = ada.status(post(ada, pushing | {"visibility": "site"}))
        assert (shown["push"], shown["visibility"]) == (True, "site")
        service = app.extensions["cic"]
        build = service.settings.library.build.model_copy(update={"storage": "oras://r.test/x"})
        library = service.settings.library.model_copy(update={"build": build})
        stored = service.settings.model_copy(update={"library": library})
        submission = dataclasses.replace(service.submission, settings=stored)
        with pytest.raises(InvalidRequest, match="visibility"):
            submission.submit(request_of(), user_id=1, is_admin=False)


def test_where_the_registry_is_private_private_images_are_pushed(
    site: Site, builder: FakeBuilder
) -> None:
    closed = site.with_environ(CIC_REGISTRY_URL="registry.test", CIC_REGISTRY_PRIVATE="true")
    with running_app(closed.settings, builder) as app:
        ada = Api(app)
        assert ada.status(post(ada, {"machine": MACHINE, "packages": ["fftw"]}))["push"] is True


@pytest.mark.parametrize("value", ["public", 1, [], "Private"])
def test_a_visibility_that_is_none_is_refused(ada: Api, value: Any) -> None:
    answer = ada(
        "POST", "/build/", json={"machine": MACHINE, "packages": ["fftw"], "visibility": value}
    )
    assert [error["field"] for error in answer.get_json()["errors"]] == ["visibility"]
