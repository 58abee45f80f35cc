"""Which images count as built already."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from image_builder import pipeline
from image_builder.docker import daemon, label_names
from image_builder.host import process
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Completed
from image_builder.observer import SilentObserver
from image_builder.pipeline import BuildResult
from image_builder.plan import resolve
from image_builder.request.build_request import BuildRequest
from image_builder.request.parsing import parse_request
from tests.support.site import BASE_IMAGE, MACHINE, Site

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


def build(request: BuildRequest, site: Site) -> BuildResult:
    return pipeline.build_image(
        request,
        settings=site.settings.library,
        workspace=site.root / "workspace",
        observer=SilentObserver(),
        cancel=CancelToken(),
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
