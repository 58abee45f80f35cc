"""What ran in a build, and when: over REST and on its page, while it goes on and later."""

from __future__ import annotations

import time

import pytest
from flask import Flask
from sqlalchemy.engine import Engine

from config.settings import Settings
from image_builder.errors import BuildFailed
from image_builder.timeline import spans
from image_builder.timeline.spans import Span
from service.cleanup import Cleanup
from service.db import timelines
from service.timeline import QUEUE
from service.web.timeline_drawing import MAX_ROWS, WIDTH
from service.workers.timeline_writer import TimelineWriter
from tests.service.conftest import Api, FakeBuilder
from tests.service.test_web import Visitor


@pytest.fixture
def engine(app: Flask) -> Engine:
    return app.extensions["cic"].engine


def package(name: str, took_s: float | None, outcome: str | None) -> Span:
    """A package that begins when it is reported."""
    span = Span(kind=spans.PACKAGE, name=name, version="1.0", hash="abcdefg", began_s=0.0)
    return span if took_s is None else span.ended(took_s, outcome or "")


def names(timeline: dict[str, list[dict[str, str]]]) -> list[str]:
    return [span["name"] for span in timeline["spans"]]


def test_a_build_tells_what_ran_when(ada: Api, builder: FakeBuilder, app: Flask) -> None:
    builder.spans = [package("fftw", 0.1, spans.BUILT), package("zlib", 0, spans.CACHED)]
    build_id = ada.submit()
    ada.wait(build_id)
    timeline = ada("GET", f"/build/{build_id}/timeline").get_json()
    assert names(timeline) == [QUEUE, "fftw", "zlib"]
    assert [span["outcome"] for span in timeline["spans"]] == ["done", "built", "cached"]
    assert timeline["spans"][1]["seconds"] == pytest.approx(0.1, abs=0.01)
    assert timeline["ended_at"] is not None and timeline["left_out"] == 0

    page = Visitor(app, "ada").get(f"/builds/{build_id}/timeline")
    assert page.status_code == 200
    assert "fftw@1.0" in page.text and "zlib@1.0" in page.text
    assert "1 built" in page.text and "1 from the build cache" in page.text


def test_it_is_there_while_the_build_goes_on(ada: Api, builder: FakeBuilder, app: Flask) -> None:
    builder.hold.clear()
    builder.spans = [package("fftw", None, None)]
    build_id = ada.submit()
    ada.wait(build_id, "BUILDING")
    deadline = time.monotonic() + 30
    while names(timeline := ada("GET", f"/build/{build_id}/timeline").get_json()) != [
        QUEUE,
        "fftw",
    ]:
        assert time.monotonic() < deadline, timeline
        time.sleep(0.02)
    assert timeline["ended_at"] is None and timeline["spans"][1]["seconds"] is None
    assert "goes on" in Visitor(app, "ada").get(f"/builds/{build_id}/timeline").text
    builder.hold.set()
    ada.wait(build_id)


def test_a_failed_build_has_one(ada: Api, builder: FakeBuilder) -> None:
    builder.spans = [package("fftw", 0.0, spans.FAILED)]
    builder.error = BuildFailed("It does not compile.", step="spack install")
    build_id = ada.submit()
    assert ada.wait(build_id)["status"] == "FAILED"
    timeline = ada("GET", f"/build/{build_id}/timeline").get_json()
    assert timeline["spans"][1]["outcome"] == "failed"


def test_without_a_document_the_states_are_told(ada: Api) -> None:
    build_id = ada.submit()
    ada.wait(build_id)
    timeline = ada("GET", f"/build/{build_id}/timeline").get_json()
    assert names(timeline) == [QUEUE, "prepare", "build", "convert to a SIF"]
    assert all(span["seconds"] >= 0 for span in timeline["spans"])


def test_what_was_there_already_ran_nothing(ada: Api, builder: FakeBuilder, app: Flask) -> None:
    builder.by_tree = True
    builder.spans = [package("fftw", 0.0, spans.BUILT)]
    ada.wait(ada.submit())
    again = ada.submit()
    assert ada.wait(again)["status"] == "FINISHED"
    if len(builder.calls) == 1:  # where the base image is known, the second is finished at once
        assert ada("GET", f"/build/{again}/timeline").get_json()["spans"] == []
    assert Visitor(app, "ada").get(f"/builds/{again}/timeline").status_code == 200


def test_names_hold_no_secret_and_no_markup(
    ada: Api, builder: FakeBuilder, app: Flask, settings: Settings
) -> None:
    secret = "canary-of-the-timeline"
    written: list[object] = []
    writer = TimelineWriter(
        written.append, secrets=[type(settings.service.secret_key)(secret)], every_s=0.0
    )
    writer.add(Span(kind=spans.LAYER, name=f"[final 1/2] RUN curl {secret}", began_s=1.0))
    assert written and secret not in repr(written)

    builder.spans = [
        Span(kind=spans.LAYER, name="[final 1/2] RUN <script>alert(1)</script>", began_s=0.0)
    ]
    build_id = ada.submit()
    ada.wait(build_id)
    page = Visitor(app, "ada").get(f"/builds/{build_id}/timeline").text
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page


def test_many_packages_are_drawn_within_the_drawing(
    ada: Api, builder: FakeBuilder, app: Flask
) -> None:
    builder.spans = [
        package(f"package-{number}", number / 1e4, spans.BUILT) for number in range(600)
    ]
    build_id = ada.submit()
    ada.wait(build_id)
    timeline = ada("GET", f"/build/{build_id}/timeline").get_json()
    assert len(timeline["spans"]) == 601
    page = Visitor(app, "ada").get(f"/builds/{build_id}/timeline").text
    assert page.count('class="row-') == MAX_ROWS
    assert "shorter ones are left out" in page
    assert f'viewBox="0 0 {WIDTH}' in page


def test_a_worker_that_lost_the_run_writes_nothing(ada: Api, engine: Engine) -> None:
    build_id = ada.submit()
    ada.wait(build_id)
    with engine.connect() as connection:
        run_id = connection.exec_driver_sql("SELECT run_id FROM builds").scalar()
    timelines.write(engine, str(run_id), "somebody else", {"spans": [], "left_out": 7})
    assert timelines.document(engine, str(run_id)) is None


def test_clean_up_forgets_old_ones(
    ada: Api, builder: FakeBuilder, engine: Engine, settings: Settings, app: Flask
) -> None:
    builder.spans = [package("fftw", 0.0, spans.BUILT)]
    build_id = ada.submit()
    ada.wait(build_id)
    images = app.extensions["cic"].images

    def cleaned(keep_s: float | None) -> list[str]:
        limits = settings.service.model_copy(update={"keep_logs_s": keep_s})
        changed = settings.model_copy(update={"service": limits})
        return [item.kind for item in Cleanup(engine, changed, images, grace_s=0).run()]

    assert "timelines" not in cleaned(None)
    assert "timelines" not in cleaned(3600)
    time.sleep(0.01)
    assert "timelines" in cleaned(0)
    assert names(ada("GET", f"/build/{build_id}/timeline").get_json())[0] == QUEUE
