"""The REST calls, over WSGI, with a fake builder behind the real queue."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from config.settings import Settings
from image_builder.errors import BuildFailed, ErrorCode
from tests.service.conftest import PASSWORD, REQUEST, ROOT, Api, FakeBuilder, running_app


def test_a_request_becomes_a_finished_build(ada: Api) -> None:
    build_id = ada.submit()

    status = ada.wait(build_id)

    assert status["status"] == "FINISHED", status
    assert status["message"] is None
    assert status["image_id"].endswith("demo_hello_x86_64_nompi_nogpu:latest")
    assert status["filename"] == "demo_hello_x86_64_nompi_nogpu_v_latest.sif"
    assert status["identity"].startswith("sha256:")
    assert len(status["sha256"]) == 64 and status["size_bytes"] > 0


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "text/plain", "application/x-www-form-urlencoded"]
)
@pytest.mark.parametrize("path", ["/build", "/build/"])
def test_the_seeds_request_works_as_a_raw_body(
    ada: Api, content_type: str | None, path: str
) -> None:
    body = json.dumps(REQUEST)[:-1] + ', "force": False}'
    answer = ada("POST", path, data=body, content_type=content_type)
    assert answer.status_code == 200, answer.text
    assert set(answer.get_json()) == {"id"}


def test_the_builder_gets_what_was_asked_for(ada: Api, builder: FakeBuilder) -> None:
    ada.wait(ada.submit(machine=REQUEST["machine"] | {"architecture": "rome"}))
    (request,) = builder.calls
    assert request.machine.target.name == "zen2"


def test_the_same_request_again_is_finished_at_once(
    ada: Api, bob: Api, builder: FakeBuilder
) -> None:
    first = ada.wait(ada.submit())
    second = bob.status(bob.submit())

    assert second["status"] == "FINISHED"
    assert second["id"] != first["id"]
    assert (second["sha256"], second["filename"]) == (first["sha256"], first["filename"])
    assert len(builder.calls) == 1


def test_another_name_of_the_same_thing_is_finished_at_once_too(
    ada: Api, builder: FakeBuilder
) -> None:
    first = ada.wait(ada.submit())
    second = ada.status(ada.submit(version="main"))

    assert second["status"] == "FINISHED"
    assert second["filename"] == "demo_hello_x86_64_nompi_nogpu_v_main.sif"
    assert second["sha256"] == first["sha256"]
    assert ada("GET", f"/image/{second['filename']}").get_json()["sha256"] == first["sha256"]
    assert ada("GET", f"/image/{first['filename']}").get_json()["sha256"] == first["sha256"]
    assert len(builder.calls) == 1


def test_images_keep_the_names_that_they_had(ada: Api, app: Flask, builder: FakeBuilder) -> None:
    """Images of before are called `openmpi-4` in the store: scripts go on asking for them."""
    machine = REQUEST["machine"] | {"mpi": "openmpi@4"}
    name = ada.wait(ada.submit(machine=machine))["filename"]
    assert name == "demo_hello_x86_64_openmpi_4_nogpu_v_latest.sif"
    earlier = name.replace("openmpi_4", "openmpi-4")
    names = app.extensions["cic"].settings.library.build.tmp_folder / "store" / "names"
    record = json.loads((names / name).read_text())
    (names / earlier).write_text(json.dumps(record | {"filename": earlier}))
    (names / name).unlink()

    for spelled in (name, earlier):
        with ada("GET", f"/images/download/{spelled}") as answer:
            assert answer.status_code == 200
        assert ada("GET", f"/image/{spelled}").get_json()["filename"] == spelled
    again = ada.status(ada.submit(machine=machine))
    assert (again["status"], again["filename"]) == ("FINISHED", name)
    assert {one["filename"] for one in ada("GET", "/image/").get_json()["images"]} == {
        name,
        earlier,
    }
    assert len(builder.calls) == 1


def test_a_build_that_failed_before_its_file_was_begun_has_none(
    ada: Api, builder: FakeBuilder
) -> None:
    """As it was with the service before: a file name of a failed build is that of a conversion."""
    builder.error = BuildFailed("Step apt failed.", code=ErrorCode.APT_FAILED)
    failed = ada.wait(ada.submit())
    assert (failed["status"], failed["filename"]) == ("FAILED", None)
    assert ada("GET", "/build/").get_json()["builds"][0]["filename"] is None


def test_a_status_begins_with_the_four_fields_that_clients_have_always_read(ada: Api) -> None:
    answer = ada("GET", f"/build/{ada.submit()}")
    assert list(answer.get_json())[:4] == ["status", "message", "image_id", "filename"]


def test_force_builds_again(ada: Api, builder: FakeBuilder) -> None:
    ada.wait(ada.submit())
    ada.wait(ada.submit(force=True))
    assert [request.force for request in builder.calls] == [False, True]


def test_identical_requests_at_once_share_one_run(app: Flask, builder: FakeBuilder) -> None:
    builder.hold.clear()
    with ThreadPoolExecutor(16) as threads:
        ids = list(threads.map(lambda _: Api(app).submit(), range(50)))
    builder.hold.set()

    assert len(set(ids)) == 50
    assert {Api(app).wait(build_id)["status"] for build_id in ids} == {"FINISHED"}
    assert len(builder.calls) == 1


def test_a_joiner_with_another_name_or_engine_gets_what_is_theirs(
    ada: Api, bob: Api, builder: FakeBuilder
) -> None:
    builder.hold.clear()
    first = ada.submit()
    ada.wait(first, "BUILDING")
    named = bob.submit(version="main")
    docker = bob.submit(machine=REQUEST["machine"] | {"container_engine": "docker"})
    builder.hold.set()

    assert ada.wait(first)["filename"].endswith("_v_latest.sif")
    assert bob.wait(named)["filename"].endswith("_v_main.sif")
    assert bob.wait(docker)["filename"] is None
    assert (
        len(
            {
                status["identity"]
                for status in (ada.status(first), bob.status(named), bob.status(docker))
            }
        )
        == 1
    )
    assert [(call.version, call.machine.container_engine) for call in builder.calls] == [
        ("latest", "singularity"),
        ("main", "singularity"),
        ("latest", "docker"),
    ]


def test_a_failure_tells_code_and_last_lines(ada: Api, builder: FakeBuilder) -> None:
    builder.error = BuildFailed(
        "Step apt failed.",
        code=ErrorCode.APT_FAILED,
        hint="Look at the names.",
        excerpt=["E: Unable to locate package bcc"],
    )
    status = ada.wait(ada.submit())

    assert status["status"] == "FAILED"
    assert status["error_code"] == "APT_FAILED"
    assert status["message"] == "Step apt failed.\nE: Unable to locate package bcc"
    assert status["hint"] == "Look at the names."
    builder.error = None
    assert ada.wait(ada.submit())["status"] == "FINISHED"


def test_a_fault_of_the_service_fails_the_build_and_not_the_service(
    ada: Api, builder: FakeBuilder
) -> None:
    builder.error = ZeroDivisionError()
    assert ada.wait(ada.submit())["error_code"] == "INTERNAL"
    builder.error = None
    assert ada.wait(ada.submit())["status"] == "FINISHED"


def test_cancel(ada: Api, builder: FakeBuilder) -> None:
    builder.hold.clear()
    build_id = ada.submit()
    ada.wait(build_id, "BUILDING")

    answer = ada("POST", f"/build/{build_id}/cancel")

    assert answer.status_code == 200
    assert (answer.get_json()["status"], answer.get_json()["error_code"]) == ("FAILED", "CANCELLED")
    builder.hold.set()
    assert ada.wait(ada.submit())["status"] == "FINISHED"
    assert ada.status(build_id)["error_code"] == "CANCELLED"


def test_a_shared_run_goes_on_while_anybody_wants_it(
    ada: Api, bob: Api, builder: FakeBuilder
) -> None:
    builder.hold.clear()
    hers, his = ada.submit(), bob.submit()
    ada.wait(hers, "BUILDING")

    assert ada("POST", f"/build/{hers}/cancel").get_json()["error_code"] == "CANCELLED"
    assert bob.status(his)["status"] == "BUILDING"
    builder.hold.set()
    assert bob.wait(his)["status"] == "FINISHED"
    assert ada.status(hers)["status"] == "FAILED"
    assert len(builder.calls) == 1


def test_an_ended_build_cannot_be_cancelled(ada: Api) -> None:
    build_id = ada.submit()
    ada.wait(build_id)
    assert ada("POST", f"/build/{build_id}/cancel").get_json()["status"] == "FINISHED"


def test_every_bad_field_is_named(ada: Api, builder: FakeBuilder) -> None:
    answer = ada(
        "POST",
        "/build/",
        json={
            "machine": {"platform": "linux/arm64", "architecture": "zen2"},
            "workflow": "../etc",
            "steps": "x",
        },
    )
    assert answer.status_code == 400
    assert answer.content_type == "application/problem+json"
    problem = answer.get_json()
    assert (problem["status"], problem["code"]) == (400, "BAD_REQUEST")
    fields = {error["field"] for error in problem["errors"]}
    assert {"machine.container_engine", "workflow", "step_id", "steps"} <= fields
    assert all(error["hint"] for error in problem["errors"])
    assert builder.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"machine": NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        json.dumps(REQUEST | {"workflow": "x" * 10_000}).encode(),
    ],
)
@pytest.mark.parametrize("path", ["/build/", "/build/plan"])
def test_what_is_no_request_is_refused(ada: Api, body: bytes, path: str) -> None:
    answer = ada("POST", path, data=body)
    assert answer.status_code == 400, answer.text
    assert answer.get_json()["errors"]


def test_a_body_of_10_mb_is_too_large(ada: Api) -> None:
    answer = ada("POST", "/build/", data=b"x" * 10_000_000)
    assert answer.status_code == 413
    assert answer.get_json()["errors"][0]["field"] == "body"


def test_a_path_is_refused(ada: Api) -> None:
    answer = ada("POST", "/build/", json=REQUEST | {"path": "/etc"})
    assert [error["field"] for error in answer.get_json()["errors"]] == ["path"]


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [("workflow", "dem", "demo"), ("step_id", "helo", "hello"), ("version", "mian", "main")],
)
def test_unknown_names_are_refused_with_the_nearest(
    ada: Api, field: str, value: str, nearest: str
) -> None:
    answer = ada("POST", "/build/", json=REQUEST | {field: value})
    assert answer.status_code == 404
    assert nearest in answer.text
    assert ada("GET", "/build/").get_json()["total"] == 0


def test_an_explicit_push_without_a_registry_is_refused_and_a_default_one_warned_of(
    ada: Api,
) -> None:
    answer = ada("POST", "/build/", json=REQUEST | {"push": True})
    assert answer.status_code == 400
    assert [error["field"] for error in answer.get_json()["errors"]] == ["push"]
    request = {key: value for key, value in REQUEST.items() if key != "push"}
    build_id = ada("POST", "/build/", json=request).get_json()["id"]
    assert any("not pushed" in warning for warning in ada.wait(build_id)["warnings"])


def test_who_has_too_much_stored_deletes_builds_or_waits_for_clean_up(
    settings: Settings, builder: FakeBuilder
) -> None:
    service = settings.service.model_copy(update={"max_stored_bytes_per_user": 8000})
    other = REQUEST | {"step_id": "other"}
    with running_app(settings.model_copy(update={"service": service}), builder) as app:
        ada, bob, images = Api(app), Api(app, "bob"), app.extensions["cic"].images
        first, again = (
            ada.wait(ada.submit()),
            ada.wait(ada.submit()),
        )  # one file of 7107 bytes, which counts once
        assert again["sha256"] == first["sha256"]
        second = ada.wait(ada.submit(step_id="other"))
        refused = ada("POST", "/build/", json=other)
        assert (refused.status_code, refused.get_json()["code"]) == (429, "QUOTA_EXCEEDED")
        assert "Your images take 14214 bytes, and may take 8000." in refused.get_json()["detail"]
        assert "Delete builds" in refused.get_json()["hint"]
        bob.wait(bob.submit())
        bob.wait(
            bob.submit(step_id="other")
        )  # the same files, which count for bob as well from here on
        assert bob("POST", "/build/", json=other).status_code == 429
        for build in (first, again):
            assert ada("DELETE", f"/build/{build['id']}").status_code == 204
        assert ada("POST", "/build/", json=other).status_code == 200
        assert images.remove(second["sha256"])
        assert bob("POST", "/build/", json=other).status_code == 200


def test_base_images_are_for_administrators(ada: Api) -> None:
    answer = ada("POST", "/build/", json=REQUEST | {"workflow": "BASE", "step_id": "BASE"})
    assert answer.status_code == 403


def test_plan_builds_and_keeps_nothing(ada: Api, builder: FakeBuilder) -> None:
    answer = ada("POST", "/build/plan", json=REQUEST)
    assert answer.status_code == 200, answer.text
    assert set(answer.get_json()) == {
        "image_id",
        "filename",
        "identity",
        "spack_yaml",
        "dockerfile",
        "warnings",
    }
    assert builder.calls == []
    assert ada("GET", "/build/").get_json()["total"] == 0


def test_the_list_is_paged_and_filtered(ada: Api, bob: Api) -> None:
    ids = []
    for version in ("latest", "main", "HEAD~0"[:4]):
        ids.append(
            ada.submit(version=version) if version != "HEAD" else ada.submit(step_id="other")
        )
        ada.wait(ids[-1])
    first = ada("GET", "/build/?per_page=2").get_json()
    second = ada("GET", "/build?per_page=2&page=2").get_json()

    assert [build["id"] for build in first["builds"] + second["builds"]] == ids[::-1]
    assert (first["total"], first["pages"]) == (3, 2)
    assert ada("GET", "/build/?status=FAILED").get_json()["builds"] == []
    assert ada("GET", "/build/?status=finished").get_json()["total"] == 3
    assert bob("GET", "/build/").get_json()["total"] == 0


@pytest.mark.parametrize(
    "query", ["page=0", "page=x", "per_page=1000", "status=DONE", "page=-1", "page=99999999999999"]
)
def test_a_bad_page_is_refused(ada: Api, query: str) -> None:
    assert ada("GET", f"/build/?{query}").status_code == 400


def test_images_and_architectures(ada: Api, bob: Api) -> None:
    status = ada.wait(ada.submit())
    (image,) = bob("GET", "/image/").get_json()["images"]
    assert (image["filename"], image["sha256"]) == (status["filename"], status["sha256"])
    assert (
        bob("GET", f"/image/{status['filename']}").get_json()["size_bytes"] == status["size_bytes"]
    )
    assert bob("GET", "/image/nope.sif").status_code == 404
    architectures = ada("GET", "/architecture/").get_json()["architectures"]
    assert next(one for one in architectures if one["name"] == "zen2")["aliases"] == ["rome"]
    arm = ada("GET", "/architecture/?platform=linux/arm64/v8").get_json()["architectures"]
    assert {one["platform"] for one in arm} == {"linux/arm64"}
    assert {one["name"] for one in arm} < {one["name"] for one in architectures}
    unknown = ada("GET", "/architecture/?platform=linux/arm46")
    assert (unknown.status_code, unknown.get_json()["errors"][0]["field"]) == (400, "platform")
    assert ada("GET", "/machine").status_code == 200


def test_a_trailing_slash_makes_no_difference(ada: Api) -> None:
    build_id = ada.submit()
    for path in (
        "/build",
        f"/build/{build_id}",
        f"/build/{build_id}/log",
        "/image",
        "/architecture",
        "/health/live",
    ):
        assert ada("GET", path).status_code == ada("GET", f"{path}/").status_code == 200, path
    assert ada("POST", f"/build/{build_id}/cancel/").status_code == 200


def test_wrong_calls_are_problems(ada: Api) -> None:
    for method, path, status in (
        ("PUT", "/build/", 405),
        ("GET", "/nothing", 404),
        ("GET", "/build/../x", 404),
    ):
        answer = ada(method, path)
        assert (answer.status_code, answer.content_type) == (status, "application/problem+json"), (
            path
        )
    assert "POST" in ada("PUT", "/build/").headers["Allow"]
    assert ada.client.get("/elsewhere").status_code == 404
    assert ada.client.get(ROOT + "x/build/").status_code == 404


def test_the_log_says_who_did_what_and_no_secret(
    ada: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="service")
    build_id = ada.submit()
    ada.wait(build_id)
    assert any(
        f"action=build subject='{build_id}' user=ada" in message for message in caplog.messages
    )
    assert any(f"build={build_id} run=" in message for message in caplog.messages)
    assert (
        PASSWORD not in caplog.text and ada.headers["Authorization"].split()[1] not in caplog.text
    )


def test_a_full_disk_is_no_fault_of_the_service(ada: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/place")

    monkeypatch.setattr("service.db.builds.builds_of", breaks)
    answer = ada("GET", "/build/")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "NO_SPACE")
    assert "Retry-After" in answer.headers and "place" not in answer.text


def test_what_nobody_foresaw_is_answered_with_a_number_that_the_log_has(
    app: Flask, ada: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("the inside of the service")

    monkeypatch.setattr("service.db.builds.builds_of", breaks)
    answer = ada("GET", "/build/")
    assert (answer.status_code, answer.content_type) == (500, "application/problem+json")
    assert "inside" not in answer.text
    assert answer.get_json()["error_id"] in caplog.text
