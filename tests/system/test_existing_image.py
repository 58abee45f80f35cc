"""Which images count as built already."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from image_builder import pipeline
from image_builder.docker import daemon, label_names
from image_builder.docker.registry import identity_name
from image_builder.host import process
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Completed
from image_builder.observer import SilentObserver
from image_builder.pipeline import BuildResult
from image_builder.plan import resolve
from image_builder.plan.inputs import Inputs
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import parse_request
from image_builder.store.folder import ImageStore
from tests.support.daemon_images import remove_images
from tests.support.site import BASE_IMAGE, MACHINE, ImageRegistry, Site, running_service

pytestmark = pytest.mark.system

REQUEST = {
    "machine": MACHINE | {"container_engine": "docker"},
    "workflow": "demo",
    "step_id": "plain",
    "push": False,
}


@pytest.fixture
def request_(site: Site) -> BuildRequest:
    """A step whose identity no image on this machine has."""
    site.add_step("demo", "plain", {"eflows4hpc.yaml": "apt: []\n", "text": secrets.token_hex()})
    return parse_request(REQUEST)


def build(request: BuildRequest, site: Site, *, inputs: Inputs | None = None) -> BuildResult:
    return pipeline.build_image(
        request,
        settings=site.settings.library,
        workspace=site.root / "workspace",
        observer=SilentObserver(),
        cancel=CancelToken(),
        inputs=inputs,
    )


def left_over_image(identity: str, folder: Path) -> str:
    """What a build leaves that was killed between the end of buildx and the checks: labelled, and
    without a name.
    """
    (folder / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\n")
    subprocess.run(
        [
            "docker",
            "buildx",
            "build",
            "--quiet",
            f"--label={label_names.IDENTITY}={identity}",
            f"--iidfile={folder / 'id'}",
            "--output=type=docker",
            str(folder),
        ],
        check=True,
        capture_output=True,
    )
    return (folder / "id").read_text().strip()


def test_an_image_that_was_never_checked_does_not_count(
    site: Site, request_: BuildRequest, tmp_path: Path
) -> None:
    identity = resolve.resolve(request_, site.settings.library).identity
    assert identity is not None
    folder = tmp_path / "left-over"
    folder.mkdir()
    left_over = left_over_image(identity, folder)
    try:
        assert daemon.find_by_identity(identity) == left_over
        assert daemon.find_by_identity(identity, named=True) is None
        result = build(request_, site)
        assert not result.reused
        assert daemon.image_labels(result.image_id)[label_names.IDENTITY] == identity
        assert daemon.find_by_identity(identity, named=True) not in (None, left_over)
        assert build(request_, site).reused, "what passed its checks is used again"
    finally:
        daemon.remove_image(left_over)


def test_what_dockers_client_leaves_behind_goes_with_the_workspace(
    site: Site, request_: BuildRequest
) -> None:
    """A buildx that is killed cannot remove its temporary files."""
    folders = []

    def runner(command: Command, **how: Any) -> Completed:
        folders.append(Path(command.env["TMPDIR"]))
        assert folders[-1].is_dir()
        return process.run(command, **how)

    workspace = site.root / "workspace"
    pipeline.build_image(
        request_,
        settings=site.settings.library,
        workspace=workspace,
        observer=SilentObserver(),
        cancel=CancelToken(),
        runner=runner,
    )
    assert folders and all(workspace in folder.parents for folder in folders)
    assert not workspace.exists()


def write_step(site: Site, text: str) -> None:
    """Let `latest` mean a step with this text."""
    site.add_step("demo", "plain", {"eflows4hpc.yaml": "apt: []\n", "text": text})


def test_latest_moves_forward_only_whichever_build_ends_last(
    site: Site, request_: BuildRequest, image_registry: ImageRegistry
) -> None:
    """Both have what they asked for; the name is that of the last that was asked for, here and in
    the image registry.
    """
    configured = site.with_environ(
        **image_registry.environ,
    )
    request = request_.model_copy(update={"push": True})
    first = resolve.resolve(request, configured.settings.library)
    write_step(site, secrets.token_hex())
    second = resolve.resolve(request, configured.settings.library)
    assert first.identity != second.identity and first.image_id == second.image_id
    repository = "group/demo_plain_x86_64_nompi_nogpu"

    newer = build(request, configured, inputs=second)
    older = build(request, configured, inputs=first)
    assert None not in (newer.pushed_digest, older.pushed_digest)
    assert newer.pushed_digest != older.pushed_digest
    assert image_registry.digest(repository, "latest") == newer.pushed_digest
    assert daemon.image_labels(newer.image_id)[label_names.IDENTITY] == newer.identity
    own_name = identity_name(older.image_id, older.identity)
    assert image_registry.digest(repository, own_name.split(":")[-1]) == older.pushed_digest
    assert daemon.image_labels(own_name)[label_names.IDENTITY] == older.identity

    again = first.model_copy(update={"submitted_at": second.submitted_at + 1})
    assert build(request, configured, inputs=again).reused
    assert image_registry.digest(repository, "latest") == older.pushed_digest
    assert daemon.image_labels(older.image_id)[label_names.IDENTITY] == older.identity
    remove_images(configured)


@pytest.mark.parametrize("engine", ["docker", "singularity"])
def test_who_asks_again_for_what_exists_asks_last(site: Site, engine: str) -> None:
    """Asked for is one image, another one, and the first again; the other is ready last."""
    first_text, second_text = secrets.token_hex(), secrets.token_hex()
    asked = {**REQUEST, "machine": MACHINE | {"container_engine": engine}}
    with running_service(site) as service:
        write_step(site, first_text)
        first = service.build(asked)
        write_step(site, second_text)
        inputs = resolve.resolve(parse_request(asked), site.settings.library)
        write_step(site, first_text)
        again = service.build(asked)
        second = build(parse_request(asked), site, inputs=inputs)
    assert first["status"] == again["status"] == "FINISHED", (first, again)
    assert first["identity"] == again["identity"] != second.identity
    if engine == "docker":
        labels = daemon.image_labels(first["image_id"])
        assert labels[label_names.IDENTITY] == first["identity"]
    else:
        named = ImageStore(site.tmp_folder / "store").by_name(first["filename"])
        assert named is not None and named.identity == first["identity"]
    remove_images(site)
