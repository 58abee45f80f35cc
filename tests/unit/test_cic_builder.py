"""The command line without the service: where it puts the SIF. Building is the system tests' part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cic_builder
from image_builder.bundle.make import Made
from image_builder.errors import CicError
from image_builder.pipeline import BuildResult
from image_builder.settings import LibrarySettings

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


def test_a_bundle_is_made_and_told_of(
    tmp_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    made = Made(identity="sha256:1", size_bytes=110, parts_bytes=100, files=7, is_signed=True)
    monkeypatch.setattr(
        "cic_builder.make_bundle", lambda request, **options: asked.update(options) or made
    )
    request = str(tmp_folder.parent / "request.json")
    output = tmp_folder.parent / "bundle.tar"
    code = cic_builder.main(["bundle", "-r", request, "--output", str(output), "--built"])
    assert code == cic_builder.EXIT_OK
    assert (asked["output"], asked["with_built"]) == (output, True)
    assert capsys.readouterr().out == (
        f"bundle: {output}\nidentity: sha256:1\nsigned: yes\nsize: 110 bytes, 1.100 of its 7 files\n"
    )


@pytest.mark.parametrize("more", [[], ["--plan"]])
def test_a_bundle_that_is_none_ends_with_a_bad_request(
    more: list[str], tmp_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_folder.parent / "bundle.tar").write_bytes(b"no bundle")
    code = build(tmp_folder, "--bundle", str(tmp_folder.parent / "bundle.tar"), *more)
    assert code == cic_builder.EXIT_BAD_REQUEST
    assert "is no bundle. Make one with: cic_builder.py bundle" in capsys.readouterr().err


def test_keys_of_a_bundle_that_are_none_end_with_a_bad_request(
    tmp_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_folder.parent / "missing.pem")
    code = build(tmp_folder, "--bundle", "bundle.tar", "--keys", missing)
    assert code == cic_builder.EXIT_BAD_REQUEST
    assert f"The key {missing} cannot be read" in capsys.readouterr().err


def test_a_shell_needs_servers(tmp_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = build(tmp_folder, "--bundle", "bundle.tar", "--shell")
    assert code == cic_builder.EXIT_BAD_REQUEST
    assert "--shell does not go with --bundle" in capsys.readouterr().err


def test_the_only_build_of_a_machine_has_all_its_cores(
    tmp_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    jobs: list[int] = []

    def build_image(*_: Any, settings: LibrarySettings, **__: Any) -> None:
        jobs.append(settings.build.jobs_per_build())
        raise CicError("It is enough to know.")

    monkeypatch.setattr("image_builder.pipeline.build_image", build_image)
    build(tmp_folder)
    monkeypatch.setenv("CIC_BUILD_BUILD_JOBS", "5")
    build(tmp_folder)
    assert jobs == [12, 5]
