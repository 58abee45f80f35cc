"""Requests with a folder of the user's own: taken, built, counted, kept and cleaned."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from sqlalchemy.engine import Engine
from urllib3.filepost import encode_multipart_formdata
from werkzeug.test import TestResponse

from config.settings import Settings
from service.cleanup import Cleanup
from service.db import accounts, builds, uploads
from tests.service.conftest import Api, FakeBuilder, running_app
from tests.service.test_web import Visitor
from tests.support.site import MACHINE, PASSWORD, PROJECT, USER, Site, make_site, running_service

OWN = {"machine": MACHINE, "push": False}
FILES = {"eflows4hpc.yaml": "apt:\n  - bc\n", "run.sh": "#!/bin/sh\n"}


def packed(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, text in files.items():
            content = text.encode() if isinstance(text, str) else text
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mode = len(content), 0o755 if content.startswith(b"#!") else 0o644
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def send(user: Api, archive: bytes, **fields: Any) -> TestResponse:
    return user("POST", "/build/", **form(archive, OWN | fields))


def form(archive: bytes, request: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The body of a form, and its type: werkzeug's client leaves files of large ones open."""
    parts = {"request": json.dumps(request), "folder": ("step.tar", archive), **more}
    body, content_type = encode_multipart_formdata(parts)
    return {"data": body, "content_type": content_type}


def sent(user: Api, files: dict[str, str | bytes] | None = None, **fields: Any) -> dict[str, Any]:
    answer = send(user, packed(files or dict(FILES)), **fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.get_json())


def errors(answer: TestResponse) -> set[str]:
    assert answer.status_code == 400, answer.text
    return {error["field"] for error in answer.get_json()["errors"]}


@pytest.fixture
def engine(app: Flask) -> Engine:
    return app.extensions["cic"].engine


def root_of(app: Flask) -> Path:
    root: Path = app.extensions["cic"].settings.library.build.uploads
    return root


def test_a_folder_is_what_the_same_folder_in_the_registry_is(
    ada: Api, bob: Api, site: Site, builder: FakeBuilder, engine: Engine
) -> None:
    site.add_step("demo", "sent", FILES)
    builder.hold.clear()
    mine = sent(ada, workflow="demo", step_id="sent")
    named = sent(ada, name="demo/sent")
    theirs = bob.submit(step_id="sent")
    other = sent(ada, name="demo/another")
    rows = [builds.build(engine, one) for one in (mine["id"], named["id"], theirs, other["id"])]
    runs = [row.run_id for row in rows if row is not None]
    assert runs[0] == runs[1] == runs[2] != runs[3]
    builder.hold.set()
    assert ada.wait(mine["id"])["filename"].startswith("ada---demo_sent_")
    assert not bob.wait(theirs)["filename"].startswith("ada")
    assert mine["folder"] == site_tree(site)


def site_tree(site: Site) -> str:
    command = ["git", "rev-parse", "HEAD:demo/sent"]
    return subprocess.check_output(command, cwd=site.registry, text=True).strip()


def test_a_sent_folder_may_be_asked_for_again_by_its_user_alone(
    app: Flask, ada: Api, bob: Api
) -> None:
    first = sent(ada, name="tools")
    ada.wait(first["id"])
    again = OWN | {"folder": first["folder"], "name": "tools"}
    assert ada("POST", "/build/", json=again).status_code == 200
    assert ada("POST", "/build/plan", json=again).status_code == 200
    for path in ("/build/", "/build/plan"):
        refused = bob("POST", path, json=again)
        assert refused.status_code == 404
        assert [error["field"] for error in refused.get_json()["errors"]] == ["folder"]
    visitor = Visitor(app, "ada")
    assert "tools" in visitor.get(f"/builds/{first['id']}").text
    assert visitor.post(f"/builds/{first['id']}/retry", {}).status_code == 302
    assert sent(bob, name="tools")["folder"] == first["folder"]
    assert bob("POST", "/build/", json=again).status_code == 200


@pytest.mark.parametrize(
    ("request_part", "folder_part", "fields"),
    [
        ("{", "tar", {"body"}),
        (None, "tar", {"request"}),
        (json.dumps(OWN), None, {"folder"}),
        (json.dumps(OWN), "text", {"folder"}),
        (json.dumps(OWN | {"folder": "0" * 40}), "tar", {"folder"}),
        (json.dumps(OWN | {"packages": ["fftw"]}), "tar", {"folder"}),
        (json.dumps(OWN | {"workflow": "w"}), "tar", {"step_id"}),
        (json.dumps(OWN | {"name": "a", "workflow": "w", "step_id": "s"}), "tar", {"name"}),
        (json.dumps(OWN | {"workflow": "BASE", "step_id": "BASE"}), "tar", {"workflow"}),
        (json.dumps(OWN | {"version": "v1"}), "tar", {"version"}),
        (json.dumps(OWN | {"path": "/etc"}), "tar", {"path"}),
        (json.dumps({"machine": {}}), "tar", {"machine.platform", "machine.container_engine"}),
    ],
)
def test_wrong_forms_are_refused_before_anything_is_unpacked(
    app: Flask, ada: Api, request_part: str | None, folder_part: str | None, fields: set[str]
) -> None:
    parts: dict[str, Any] = {} if request_part is None else {"request": request_part}
    if folder_part == "tar":
        parts["folder"] = ("step.tar", packed(dict(FILES)))
    elif folder_part:
        parts["folder"] = folder_part
    body, content_type = encode_multipart_formdata(parts)
    answer = ada("POST", "/build/", data=body, content_type=content_type)
    assert fields <= errors(answer)
    assert not root_of(app).exists()


def test_unknown_parts_are_named(ada: Api) -> None:
    answer = ada("POST", "/build/", **form(packed(dict(FILES)), OWN, tarball="x"))
    assert errors(answer) == {"tarball"}


@pytest.mark.parametrize(
    "body", [b"", b"nothing", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n--x--"]
)
def test_bodies_that_are_no_form_are_refused(ada: Api, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert ada("POST", "/build/", data=body, headers=headers).status_code == 400


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        made.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        b"no tar",
        hostile("/etc/cron.d/x"),
        hostile("../../x"),
        hostile("x", tarfile.SYMTYPE, "/etc/shadow"),
        hostile("x", tarfile.LNKTYPE, "y"),
        hostile("x", tarfile.CHRTYPE),
        packed({f"f{number}": "" for number in range(10_001)}),
    ],
)
def test_hostile_folders_are_refused_and_leave_nothing(
    app: Flask, ada: Api, archive: bytes
) -> None:
    answer = send(ada, archive)
    assert errors(answer) == {"folder"}
    assert all(error["hint"] for error in answer.get_json()["errors"])
    assert list(root_of(app).iterdir()) == []


def test_a_folder_that_cannot_be_built_is_refused_at_once(app: Flask, ada: Api) -> None:
    wrong = send(ada, packed({"eflows4hpc.yaml": "spack:\n  specs: [hdf5 1.14]\n"}))
    assert (wrong.status_code, wrong.get_json()["code"]) == (400, "BAD_DESCRIPTION")
    missing = send(ada, packed({"run.sh": "x"}))
    assert (missing.status_code, missing.get_json()["code"]) == (400, "BAD_DESCRIPTION")
    assert list(root_of(app).iterdir()) == []


def test_larger_bodies_are_for_folders_alone(ada: Api) -> None:
    large = packed(dict(FILES) | {"data": os.urandom(3 * 1024**2)})
    assert send(ada, large).status_code == 200
    for path in ("/build/plan", "/machine/recognise"):
        assert ada("POST", path, **form(large, OWN)).status_code == 413
    body = b" " * 2 * 1024**2
    assert ada("POST", "/build/", data=body, headers={"Content-Type": "x"}).status_code == 413


def test_a_body_beyond_the_sites_limit_is_too_large(site: Site, builder: FakeBuilder) -> None:
    small = site.with_environ(CIC_MAX_UPLOAD_BYTES="100000")
    with running_app(small.settings, builder) as app:
        assert send(Api(app), packed({"data": b"x" * 200_000})).status_code == 413
        assert send(Api(app), packed(dict(FILES))).status_code == 200


def test_a_browser_of_another_site_sends_no_folder(ada: Api) -> None:
    for headers in ({"Origin": "https://evil.test"}, {"Sec-Fetch-Site": "same-origin"}):
        answer = ada("POST", "/build/", **form(packed(dict(FILES)), OWN), headers=headers)
        assert answer.status_code in (403, 415)


def test_old_folders_make_room_but_not_those_that_builds_wait_for(
    site: Site, builder: FakeBuilder
) -> None:
    bounded = site.with_environ(CIC_MAX_UPLOADS_BYTES_PER_USER="250000")
    with running_app(bounded.settings, builder) as app:
        ada, root = Api(app), root_of(app)
        first, second, third = ({**FILES, "data": bytes([number]) * 100_000} for number in range(3))
        one = sent(ada, first)
        ada.wait(one["id"])
        builder.hold.clear()
        two = sent(ada, second)
        three = sent(ada, third)
        assert {path.name for path in root.iterdir()} == {two["folder"], three["folder"]}
        refused = send(ada, packed(first))
        assert (refused.status_code, refused.get_json()["code"]) == (429, "QUOTA_EXCEEDED")
        assert {path.name for path in root.iterdir()} == {two["folder"], three["folder"]}
        builder.hold.set()
        ada.wait(two["id"])
        ada.wait(three["id"])
        assert sent(ada, first)["folder"] == one["folder"]


def test_many_empty_files_count_as_what_they_take(site: Site, builder: FakeBuilder) -> None:
    bounded = site.with_environ(CIC_MAX_UPLOADS_BYTES_PER_USER=str(100 * 4096))
    with running_app(bounded.settings, builder) as app:
        ada = Api(app)
        fewer: dict[str, str | bytes] = {**FILES, **{f"e{number}": "" for number in range(98)}}
        assert send(ada, packed(fewer)).status_code == 200
        refused = send(ada, packed({**fewer, "one-more": ""}))
        assert (refused.status_code, refused.get_json()["code"]) == (429, "QUOTA_EXCEEDED")


def test_folders_of_all_users_take_no_more_than_they_may(site: Site, builder: FakeBuilder) -> None:
    bounded = site.with_environ(CIC_MAX_UPLOADS_BYTES="250000")
    with running_app(bounded.settings, builder) as app:
        ada, bob, root = Api(app), Api(app, "bob"), root_of(app)
        first, second, third = ({**FILES, "data": bytes([number]) * 100_000} for number in range(3))
        one, same = sent(ada, first), sent(bob, first)  # on the disk once
        two = sent(bob, second)
        for user, build in ((ada, one), (bob, same), (bob, two)):
            user.wait(build["id"])
        builder.hold.clear()
        three = sent(ada, third)
        assert {path.name for path in root.iterdir()} == {two["folder"], three["folder"]}
        assert bob("POST", "/build/", json=OWN | {"folder": one["folder"]}).status_code == 404
        sent(bob, second, force=True)
        refused = send(ada, packed(first))
        assert (refused.status_code, refused.get_json()["code"]) == (429, "QUOTA_EXCEEDED")
        assert "all users" in refused.get_json()["detail"]
        builder.hold.set()


def test_what_two_users_sent_stays_for_the_other(
    app: Flask, ada: Api, bob: Api, engine: Engine
) -> None:
    tree = sent(ada)["folder"]
    assert sent(bob)["folder"] == tree
    accounts.remove_user(engine, "ada")
    assert not app.extensions["cic"].submission.uploads.forget(tree)
    assert (root_of(app) / tree).is_dir()


def test_clean_up_takes_folders_that_nobody_needs(
    app: Flask, ada: Api, engine: Engine, settings: Settings, builder: FakeBuilder
) -> None:
    builder.hold.clear()
    tree, root = sent(ada)["folder"], root_of(app)
    (root / f"aside-{'0' * 32}").mkdir()
    stray = root / ("1" * 40)
    stray.mkdir()
    limits = settings.service.model_copy(update={"keep_uploads_s": 0.0})
    changed = settings.model_copy(update={"service": limits})

    def cleaned(**options: Any) -> set[str]:
        cleanup = Cleanup(engine, changed, app.extensions["cic"].images, grace_s=-1)
        return {item.name for item in cleanup.run(**options) if item.kind.startswith("sent")}

    left = {f"aside-{'0' * 32}", "1" * 40}
    assert cleaned(dry_run=True) == left and stray.is_dir()
    assert cleaned() == left
    assert [path.name for path in root.iterdir()] == [tree]  # its build waits
    builder.hold.set()
    for one in ada("GET", "/build/").get_json()["builds"]:
        ada.wait(one["id"])
    assert cleaned() == {"1", tree}
    assert list(root.iterdir()) == []
    assert uploads.known_trees(engine) == frozenset()


def test_where_workers_share_no_folder_none_is_taken(app: Flask, ada: Api) -> None:
    service = app.extensions["cic"]
    elsewhere = service.settings.service.model_copy(update={"executor": "celery"})
    object.__setattr__(
        service.submission.uploads,
        "settings",
        service.settings.model_copy(update={"service": elsewhere}),
    )
    assert errors(send(ada, packed(dict(FILES)))) == {"folder"}


def test_the_client_sends_a_folder_to_the_real_server(tmp_path: Path) -> None:
    """The server's own bound of bodies gives way for it, and for nothing else."""
    site = make_site(tmp_path / "site")
    folder = tmp_path / 'a "folder" of mine'
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "data").write_bytes(os.urandom(3 * 1024**2))
    request = tmp_path / "request.json"
    request.write_text(json.dumps(OWN | {"name": "flows/mine"}))
    temporary = tmp_path / 'odd; "place"'
    temporary.mkdir()
    with running_service(site) as service:
        environ = {"PATH": os.environ["PATH"], "CIC_USER": USER, "CIC_PASSWORD": PASSWORD}
        environ |= {"CIC_URL": service.url, "TMPDIR": str(temporary)}
        command = [str(PROJECT / "cic_cli"), "build", "--path", str(folder), str(request)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.partition("\n")[2])
        kept = site.tmp_folder / "uploads" / answer["folder"]
        assert (kept / "data").read_bytes() == (folder / "data").read_bytes()
        for wrong in (["--path", str(folder)], ["--path", str(folder / "x"), str(request)]):
            refused = subprocess.run(
                [*command[:2], *wrong], env=environ, capture_output=True, timeout=60
            )
            assert refused.returncode == 2
        stranger = requests.post(
            f"{service.url}/image_creation/build/",
            files={"folder": b"x" * 2 * 1024**2, "request": b"{}"},
            timeout=60,
        )
        assert stranger.status_code in (401, 413)
        with contextlib.suppress(requests.ConnectionError):
            refused_body = service.call("POST", "/build/plan", data=b" " * 2 * 1024**2)
            assert refused_body.status_code == 413
        assert shutil.rmtree(kept) is None
