"""SIFs that the first service made: their names stay good, and no front server hands them out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask

from config.settings import Settings
from service import earlier_images
from tests.service.conftest import Api
from tests.unit.sif.test_format import written

NAME = "minimal_workflow_wordcount_skylake_openmpi_4_nogpu_v_latest.sif"


@pytest.fixture
def sif(tmp_path: Path) -> Path:
    return written(tmp_path).rename(tmp_path / NAME)


def start(settings: Settings) -> Flask:
    from builder_service import create_app

    return create_app(settings)


def test_they_leave_the_folder_that_a_front_server_serves(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_folder = settings.library.build.tmp_folder
    images = tmp_folder / "images"
    images.mkdir(parents=True)
    (images / NAME).write_bytes(b"SIF")
    start(settings)
    aside = tmp_folder / "earlier-images" / NAME
    assert aside.read_bytes() == b"SIF" and list(images.iterdir()) == []
    assert f"moved to {aside.parent}: 1. `images import`" in caplog.text

    (images / "later.sif").write_bytes(b"the service's own")
    start(settings)
    assert [path.name for path in images.iterdir()] == ["later.sif"]


def test_processes_that_start_at_once_move_each_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(200):
        (tmp_path / "images" / f"{number}.sif").write_bytes(b"SIF")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(earlier_images.set_aside, [tmp_path] * 8))
    assert len(list((tmp_path / "earlier-images").iterdir())) == 200
    told = [int(text.split(": ")[1].split(".")[0]) for text in caplog.messages]
    assert sum(told) == 200


def test_an_imported_one_is_downloaded_under_its_name(app: Flask, ada: Api, sif: Path) -> None:
    run = app.test_cli_runner().invoke(args=["images", "import", str(sif)])
    assert run.exit_code == 0, run.output
    with ada("GET", f"/images/download/{NAME}") as answer:
        assert (answer.status_code, answer.data) == (200, sif.read_bytes())
    described = ada("GET", f"/image/{NAME}").get_json()
    assert described["platform"] == "linux/amd64"
    assert described["image_id"] == NAME.replace("_v_latest.sif", ":latest")
    assert NAME in {one["filename"] for one in ada("GET", "/image/").get_json()["images"]}


def test_what_cannot_be_taken_over_is_named_and_the_rest_is(
    app: Flask, ada: Api, sif: Path, tmp_path: Path
) -> None:
    cut, odd = tmp_path / "cut.sif", tmp_path / "no image.sif"
    cut.write_bytes(sif.read_bytes()[:-1])
    odd.write_bytes(sif.read_bytes())
    run = app.test_cli_runner().invoke(
        args=["images", "import", str(cut), str(odd), str(sif), str(sif)]
    )
    assert run.exit_code == 1
    assert "cut.sif is not a whole SIF: " in run.output
    assert "no image.sif cannot be the name of an image." in run.output
    assert f"There is an image {NAME} already." in run.output
    assert [one["filename"] for one in ada("GET", "/image/").get_json()["images"]] == [NAME]
