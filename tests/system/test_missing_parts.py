"""What a build says when a part of the site is missing, broken or full; the service lives on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.daemon_images import remove_images
from tests.support.site import MACHINE, ImageRegistry, Service, Site, free_port, running_service

pytestmark = pytest.mark.system

REQUEST = {"machine": MACHINE, "workflow": "demo", "step_id": "hello", "push": False}
NO_RETRY = {"CIC_RETRY_DELAY_S": "0.2", "CIC_MAX_RETRIES": "1"}


def fails_with(site: Site, code: str, **request: object) -> tuple[dict, dict]:
    """Build on a service of this site; returns the failed build and the readiness. The service has
    to live on.
    """
    with running_service(site) as service:
        status = service.build({**REQUEST, **request})
        ready = service.call("GET", "/health/ready")
        assert service.call("GET", "/health/live").status_code == 200
    remove_images(site)
    assert status["status"] == "FAILED", status
    assert status["error_code"] == code, status
    return status, {"status": ready.status_code, "text": ready.text}


def test_a_docker_daemon_that_is_not_there(site: Site) -> None:
    status, ready = fails_with(
        site.with_environ(DOCKER_HOST=f"unix://{site.root}/no.sock", **NO_RETRY),
        "DOCKER_UNAVAILABLE",
    )

    assert "Docker daemon" in status["message"]
    assert ready["status"] == 503
    assert "docker" in ready["text"]


def test_a_machine_without_singularity(site: Site) -> None:
    programs = site.root / "programs"
    programs.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
            link = programs / program.name
            if program.name not in ("singularity", "apptainer") and not link.is_symlink():
                link.symlink_to(program)

    status, _ = fails_with(site.with_environ(PATH=str(programs)), "TOOL_MISSING")

    assert "apptainer" in status["message"]


def test_an_image_registry_that_does_not_answer(site: Site) -> None:
    host = f"127.0.0.1:{free_port()}"
    silent = site.with_environ(
        CIC_REGISTRY_URL=host, CIC_REGISTRY_IMAGES_PREFIX=f"{host}/group/", **NO_RETRY
    )

    status, _ = fails_with(silent, "IMAGE_REGISTRY_UNAVAILABLE", push=True)

    assert host in status["message"]


def test_an_image_registry_that_refuses_the_password(
    site: Site, image_registry: ImageRegistry
) -> None:
    host = image_registry.host
    refused = site.with_environ(
        CIC_REGISTRY_URL=host,
        CIC_REGISTRY_USER=image_registry.user,
        CIC_REGISTRY_TOKEN="not-the-password-canary",
        CIC_REGISTRY_IMAGES_PREFIX=f"{host}/group/",
    )

    status, _ = fails_with(refused, "PUSH_FAILED", push=True)

    assert "registry_cfg" in status["hint"]
    assert "not-the-password-canary" not in str(status)


def test_a_disk_without_room(site: Site) -> None:
    status, _ = fails_with(site.with_environ(CIC_BUILD_MIN_FREE_BYTES=str(10**15)), "NO_SPACE")

    assert "GB free" in status["message"]


def test_a_workflow_registry_that_is_gone_refuses_at_submit(site: Site) -> None:
    gone = site.with_environ(CIC_REPOSITORIES_WORKFLOW_REPOSITORY=f"file://{site.root}/nowhere")
    with running_service(gone) as service:
        answer = service.call("POST", "/build/", json=REQUEST)
        assert service.call("GET", "/health/live").status_code == 200

    assert answer.status_code == 503
    assert answer.json()["code"] == "WORKFLOW_REGISTRY_UNAVAILABLE"


@pytest.fixture
def service(site: Site) -> Service:
    with running_service(site) as running:
        yield running


def test_names_that_do_not_exist_are_refused_at_once_with_the_nearest(service: Service) -> None:
    for field, value, nearest in (
        ("workflow", "dmeo", "demo"),
        ("step_id", "helo", "hello"),
        ("version", "mian", "main"),
    ):
        answer = service.call("POST", "/build/", json={**REQUEST, field: value})
        assert answer.status_code in (400, 404)
        assert nearest in answer.text
        assert field in answer.text
    assert service.call("GET", "/build/").json()["total"] == 0
