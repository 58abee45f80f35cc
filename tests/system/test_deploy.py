"""The files of deploy/: what can be checked of them quickly, and the container image, really built and used."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

from config.loading import SECTIONS
from config.settings import ServiceSettings
from tests.system.conftest import remove_images
from tests.system.site import BASE_IMAGE, MACHINE, PASSWORD, PROJECT, USER, Service, free_port, make_site

DEPLOY = PROJECT / "deploy"


def known_variables() -> set[str]:
    """Every variable that the service reads."""
    names = {f"CIC_{key.upper()}" for key in ServiceSettings.model_fields}
    for prefix, model in SECTIONS.values():
        names |= {f"CIC_{prefix}_{key.upper()}" for key in model.model_fields}
    return names | {"CIC_CONFIG"}


class Loader(yaml.SafeLoader):
    """Knows Compose's tag for a value that is taken back."""


Loader.add_constructor("!reset", lambda _, __: None)


def documents(path: Path) -> list[Any]:
    return list(yaml.load_all(path.read_text("utf-8"), Loader))


def settings_in(value: Any) -> Iterator[str]:
    """The variables that a document sets: as keys, or as entries with a name."""
    if isinstance(value, dict):
        yield from (key for key in [*value, str(value.get("name"))] if key.startswith("CIC_"))
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from settings_in(inner)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_setting_named_there_exists(path: Path) -> None:
    found = {name.removesuffix("_FILE") for document in documents(path) for name in settings_in(document)}
    assert found
    assert found <= known_variables(), found - known_variables()


def test_compose_keeps_what_must_be_kept() -> None:
    service = documents(DEPLOY / "compose.yaml")[0]["services"]["cic"]
    assert "data:/var/lib/cic" in service["volumes"]
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "CIC_DATABASE=sqlite:////var/lib/cic/" in dockerfile and "CIC_BUILD_TMP_FOLDER=/var/lib/cic/" in dockerfile


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("kubernetes/*.yaml")), ids=lambda path: path.name)
def test_kubernetes_knows_every_field(path: Path) -> None:
    pods = 0
    for document in documents(path):
        kubernetes_validate.validate(document, "1.30", strict=True)
        if document["kind"] == "Deployment":
            pods += 1
            assert document["spec"]["template"]["spec"]["enableServiceLinks"] is False, "CIC_PORT would be set"
    assert pods == 2


@pytest.mark.parametrize("unit", sorted(DEPLOY.glob("systemd/*.service")), ids=lambda path: path.name)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    try:
        subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no systemd-analyze")
    copy = tmp_path / unit.name
    text = unit.read_text()
    copy.write_text("\n".join("ExecStart=/bin/true" if line.startswith("ExecStart=") else line
                              for line in text.splitlines()))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert unit.name not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The image of the service, built from this very tree."""
    name = f"cic-deploy-test:{secrets.token_hex(4)}"
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    subprocess.run(["docker", "buildx", "build", "--quiet", f"--file={DEPLOY / 'Dockerfile'}", f"--tag={name}",
                    f"--build-arg=BASE={BASE_IMAGE}", f"--secret=id=ca_bundle,src={bundle}", "--load", str(PROJECT)],
                   check=True, timeout=1800)
    yield name
    subprocess.run(["docker", "rmi", "--force", name], capture_output=True)


@pytest.mark.endurance
@pytest.mark.system
@pytest.mark.timeout(2400)
def test_the_container_builds_an_image_with_the_hosts_docker(image: str, tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.add_step("demo", "hello", {"eflows4hpc.yaml": "apt: []\n"})
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    port = free_port()
    settings = {key: value for key, value in site.environ.items() if key.startswith("CIC_") and key not in (
        "CIC_CONFIG", "CIC_BUILD_TMP_FOLDER", "CIC_DATABASE", "CIC_HOST", "CIC_BUILD_CA_BUNDLE")}
    container = subprocess.run(
        ["docker", "run", "--detach", "--init", f"--publish=127.0.0.1:{port}:5000",
         f"--volume={site.registry}:{site.registry}:ro", "--volume=/var/run/docker.sock:/var/run/docker.sock",
         f"--group-add={Path('/var/run/docker.sock').stat().st_gid}",
         *(f"--env={key}={value}" for key, value in settings.items()), image],
        check=True, capture_output=True, text=True).stdout.strip()
    try:
        service = Service(site, f"http://127.0.0.1:{port}", tmp_path / "none", None)  # type: ignore[arg-type]
        wait_until_ready(f"{service.url}/image_creation/health/ready")
        subprocess.run(["docker", "exec", "--interactive", container, "flask", "--app", "builder_service", "users",
                        "add", USER], input=PASSWORD.encode() + b"\n", check=True, capture_output=True)
        build = service.build({"machine": MACHINE, "workflow": "demo", "step_id": "hello", "push": False})
        assert build["status"] == "FINISHED", build
        sif = service.call("GET", f"/images/download/{build['filename']}")
        assert len(sif.content) == build["size_bytes"]
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True)
        remove_images(site)


def wait_until_ready(url: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if requests.get(url, timeout=10).status_code == 200:
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < end, f"{url} does not answer"
        time.sleep(0.5)
