"""The command line without the service: where it puts the SIF. Building is the system tests' part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cic_builder
from image_builder.pipeline import BuildResult

NAME = "w_s_x86_64_nompi_nogpu_v_latest.sif"
REQUEST = {
    "machine": {"platform": "linux/amd64", "container_engine": "singularity"},
    "workflow": "w",
    "step_id": "s",
}


@pytest.fixture
def tmp_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a site where every build ends with a stored SIF."""
    folder = tmp_path / "tmp"
    stored = folder / "store" / "sif" / "digest.sif"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"SIF")
    result = BuildResult(
        image_id="w_s:latest",
        identity="sha256:" + "0" * 64,
        filename=NAME,
        sif_path=stored,
        sha256="0" * 64,
        size_bytes=3,
        pushed_digest=None,
        reused=False,
        audit=None,
        warnings=(),
    )
    monkeypatch.setattr("image_builder.pipeline.build_image", lambda *_, **__: result)
    monkeypatch.setenv("CIC_BUILD_TMP_FOLDER", str(folder))
    (tmp_path / "request.json").write_text(json.dumps(REQUEST))
    return folder


def build(tmp_folder: Path, *more: str) -> int:
    return cic_builder.main(["-r", str(tmp_folder.parent / "request.json"), *more])


def test_a_sif_is_there_under_its_name(
    tmp_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_folder / "images" / NAME
    earlier.parent.mkdir()
    earlier.write_bytes(b"of an earlier build")

    assert build(tmp_folder) == build(tmp_folder) == cic_builder.EXIT_OK

    assert f"sif: {tmp_folder / 'images' / NAME}" in capsys.readouterr().out
    assert [path.name for path in earlier.parent.iterdir()] == [NAME]
    assert earlier.samefile(tmp_folder / "store" / "sif" / "digest.sif")


def test_output_makes_its_folder(tmp_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = tmp_folder.parent / "not" / "yet"
    assert build(tmp_folder, "--output", str(wanted)) == cic_builder.EXIT_OK
    assert f"sif: {wanted / NAME}" in capsys.readouterr().out
    assert (wanted / NAME).read_bytes() == b"SIF"
    assert [path.name for path in wanted.iterdir()] == [NAME]


def test_an_output_that_is_no_folder_says_where_the_sif_is(
    tmp_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_folder.parent / "file").write_text("")
    code = build(tmp_folder, "--output", str(tmp_folder.parent / "file"))
    assert code == cic_builder.EXIT_BAD_REQUEST
    told = capsys.readouterr().err
    assert f"cannot be written to {tmp_folder.parent / 'file' / NAME}" in told
    assert f"It is stored as {tmp_folder / 'images' / NAME}." in told
