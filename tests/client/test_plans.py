"""What a plan is compared with, and how the difference is shown."""

from __future__ import annotations

import io
import json

import pytest
from cic_client import BadInput, Client, models, plans
from flask import Flask
from rich.console import Console

from tests.client.conftest import Cic, screen_of
from tests.service.conftest import REQUEST, FakeBuilder

MACHINE = "lumi-c"
GREEN, RED = "\x1b[32m", "\x1b[31m"
BEFORE = plans.Earlier(
    name="before.json",
    identity="sha256:1",
    texts={
        "description_yaml": "spack: {}\n",
        "spack_yaml": "spack:\n  specs:\n  - zlib\n",
        "dockerfile": "FROM a\n",
    },
    warnings=("no GPU", "old"),
)


def plan_of(**changes: object) -> models.Plan:
    fields = {
        "image_id": "mine:latest",
        "identity": "sha256:2",
        "spack_yaml": "spack:\n  specs:\n  - fftw\n",
        "dockerfile": "FROM a\n",
        "warnings": ["no GPU", "new"],
    }
    return models.Plan.model_validate(fields | changes)


def shown(before: plans.Earlier, plan: models.Plan) -> str:
    """What a terminal with colours gets."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=100,
        markup=False,
        highlight=False,
        force_terminal=True,
        color_system="standard",
    )
    plans.show_difference(screen_of(console), before, plan)
    return file.getvalue()


def test_a_difference_is_coloured_and_names_what_differs() -> None:
    text = shown(BEFORE, plan_of())
    for part in (
        f"{RED}-  - zlib", f"{GREEN}+  - fftw", f"{RED}-old", f"{GREEN}+new", "sha256:1", "sha256:2",
        "spack.yaml", "before.json",
    ):  # fmt: skip
        assert part in text, part
    assert "Dockerfile" not in text and "description.yaml" not in text
    assert f"{RED}-no GPU" not in text and f"{GREEN}+no GPU" not in text


def test_what_is_the_same_is_said_once() -> None:
    same = plan_of(
        identity="sha256:1", spack_yaml=BEFORE.texts["spack_yaml"], warnings=["no GPU", "old"]
    )
    text = shown(BEFORE, same)
    assert "sha256:1 (the same)" in text and GREEN not in text and RED not in text


def test_what_is_too_long_to_compare_is_said_to_differ() -> None:
    text = shown(BEFORE, plan_of(dockerfile="RUN true\n" * plans.MAX_COMPARED_LINES))
    assert f"Dockerfile differs: 1 lines before, {plans.MAX_COMPARED_LINES} now" in text


def test_nothing_of_a_difference_steers_a_terminal() -> None:
    assert "\x1b[2J" not in shown(BEFORE, plan_of(dockerfile="FROM \x1b[2Jb\n"))


def test_a_plan_is_compared_with_an_earlier_one_in_a_file(ada: Cic) -> None:
    earlier = ada("plan", "-p", "zlib", "-m", MACHINE, "--json")
    assert earlier.returncode == 0, earlier.stderr
    (ada.home / "earlier.json").write_text(earlier.stdout)
    same = ada("plan", "-p", "zlib", "-m", MACHINE, "--against", "earlier.json")
    assert same.returncode == 0 and "+" not in same.stdout
    done = ada("plan", "-p", "fftw", "-m", MACHINE, "--against", "earlier.json")
    lines = done.stdout.splitlines()
    assert any(line.startswith("-") and "zlib" in line for line in lines), done.stdout
    assert any(line.startswith("+") and "fftw" in line for line in lines)
    assert "fftw" in ada("plan", "-p", "fftw", "-m", MACHINE).stdout


def test_a_plan_is_compared_with_a_build_and_an_image(
    ada: Cic, app: Flask, client: Client, builder: FakeBuilder
) -> None:
    build = client.wait(client.submit(REQUEST).id)
    app.extensions["cic"].images.keep_documents(
        str(build.identity), {"Dockerfile": "FROM nowhere\n", "spack.yaml": "spack: {}\n"}
    )
    (ada.home / "request.json").write_text(json.dumps(REQUEST))
    for earlier in (build.id, str(build.filename)):
        done = ada("plan", "request.json", "--against", earlier)
        assert done.returncode == 0, done.stderr
        assert "-FROM nowhere" in done.stdout and "-spack: {}" in done.stdout
        assert earlier in done.stdout
    point_at_another(app, build)
    with pytest.raises(BadInput, match="of another build"):
        plans.earlier(client, build.id)


def point_at_another(app: Flask, build: models.Build) -> None:
    """Let the name of a build's image be that of another image."""
    images = app.extensions["cic"].images
    record = images.by_identity(build.identity)
    with images.temporary_path() as temporary:
        temporary.write_bytes(b"another SIF")
        images.publish(temporary, record.model_copy(update={"identity": "sha256:" + "9" * 64}))


@pytest.mark.parametrize("earlier", ["nowhere", "a/b.sif", "f1f4699b-9048-4ecc-aff3-1c689b855adc"])
def test_what_no_plan_can_be_compared_with_is_said(ada: Cic, earlier: str) -> None:
    done = ada("plan", "-p", "zlib", "-m", MACHINE, "--against", earlier)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert earlier in done.stderr or "404" in done.stderr


def test_a_failed_build_has_nothing_to_compare_with(client: Client, builder: FakeBuilder) -> None:
    builder.error = RuntimeError("no")
    build = client.wait(client.submit(REQUEST).id)
    with pytest.raises(BadInput, match="has left no image"):
        plans.earlier(client, build.id)


def test_a_difference_is_no_json(ada: Cic) -> None:
    done = ada("plan", "-p", "zlib", "-m", MACHINE, "--json", "--against", "x")
    assert done.returncode == 2 and "--json" in done.stderr
