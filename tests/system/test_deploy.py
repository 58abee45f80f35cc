"""The files of deploy/: what can be checked of them quickly, and the container image, really built
and used.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import requests
import yaml

from config.loading import SECTIONS
from config.settings import ServiceSettings
from tests.support.daemon_images import remove_images
from tests.support.site import (
    BASE_IMAGE,
    MACHINE,
    PASSWORD,
    PROJECT,
    USER,
    Service,
    free_port,
    make_site,
)

DEPLOY = PROJECT / "deploy"
STANDINS = PROJECT / "tests" / "support" / "standin"


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
    found = {
        name.removesuffix("_FILE") for document in documents(path) for name in settings_in(document)
    }
    assert found
    assert found <= known_variables(), found - known_variables()


def test_compose_keeps_what_must_be_kept() -> None:
    service = documents(DEPLOY / "compose.yaml")[0]["services"]["cic"]
    assert "data:/var/lib/cic" in service["volumes"]
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert (
        "CIC_DATABASE=sqlite:////var/lib/cic/" in dockerfile
        and "CIC_BUILD_TMP_FOLDER=/var/lib/cic/" in dockerfile
    )


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.glob("kubernetes/*.yaml")), ids=lambda path: path.name
)
def test_kubernetes_knows_every_field(path: Path) -> None:
    pods = 0
    for document in documents(path):
        kubernetes_validate.validate(document, "1.30", strict=True)
        if document["kind"] == "Deployment":
            pods += 1
            assert document["spec"]["template"]["spec"]["enableServiceLinks"] is False, (
                "CIC_PORT would be set"
            )
    assert pods == 2


@pytest.mark.parametrize(
    "unit", sorted(DEPLOY.glob("systemd/*.service")), ids=lambda path: path.name
)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    try:
        subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no systemd-analyze")
    copy = tmp_path / unit.name
    text = unit.read_text()
    copy.write_text(
        "\n".join(
            re.sub(r"^(ExecStart(?:Pre)?=\+?)/.*", r"\1/bin/true", line)
            for line in text.splitlines()
        )
    )
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert unit.name not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "unit", sorted(DEPLOY.glob("systemd/*.service")), ids=lambda path: path.name
)
def test_the_units_isolate_build_steps_before_anything_is_built(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    isolating = "ExecStartPre=+/opt/cic/.venv/bin/python isolate_builds.py apply"
    begins = next(index for index, line in enumerate(lines) if line.startswith("ExecStart="))
    assert lines.index(isolating) < begins
    assert "Environment=CIC_BUILD_REQUIRE_ISOLATION=true" in lines


@pytest.mark.parametrize(
    "path",
    ["compose.yaml", "kubernetes/cic.yaml", "systemd/cic.service"],
)
def test_who_signs_up_waits_where_it_is_in_production(path: str) -> None:
    text = (DEPLOY / path).read_text()
    assert re.search(r"CIC_CONFIRM_USERS(: \$\{CIC_CONFIRM_USERS:-true\}|: \"true\"|=true)\n", text)


def test_kubernetes_keeps_build_steps_from_what_is_inside() -> None:
    found = documents(DEPLOY / "kubernetes" / "cic.yaml")
    policies = [document["spec"] for document in found if document["kind"] == "NetworkPolicy"]
    (egress,) = (policy["egress"] for policy in policies if policy["policyTypes"] == ["Egress"])
    blocks = [to["ipBlock"] for rule in egress for to in rule["to"] if "ipBlock" in to]
    closed = [ipaddress.ip_network(one) for block in blocks for one in block["except"]]
    for inside in ("169.254.169.254", "10.96.0.1", "100.100.100.200", "fd00:ec2::254"):
        assert any(ipaddress.ip_address(inside) in network for network in closed), inside
    workers = [
        policy for policy in policies if policy["podSelector"]["matchLabels"]["app"] == "cic-worker"
    ]
    assert {"policyTypes": ["Ingress"], "podSelector": workers[0]["podSelector"]} in workers


def test_redis_asks_for_its_password(tmp_path: Path) -> None:
    """The command of the compose file, with the real server at a port of its own."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("there is no redis-server")
    port = free_port()
    wrapped = tmp_path / "redis-server"
    wrapped.write_text(f'#!/bin/sh\nexec {server} "$@" --bind 127.0.0.1 --port {port}\n')
    wrapped.chmod(0o755)
    command = documents(DEPLOY / "compose.cluster.yaml")[0]["services"]["redis"]["command"]
    password = secrets.token_hex(32)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDIS_PASSWORD": password}
    process = subprocess.Popen(
        [argument.replace("$$", "$") for argument in command],
        env=environ,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    try:
        client = redis.Redis(port=port, password=password)
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(redis.ConnectionError):
                assert client.ping()
                break
            assert time.monotonic() < end
            time.sleep(0.1)
        client.close()
        stranger = redis.Redis(port=port)
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        stranger.close()
        assert password not in Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def built(context: Path, *options: str) -> Iterator[str]:
    """An image built from a folder, until the block ends; its name."""
    name = f"cic-deploy-test:{secrets.token_hex(4)}"
    subprocess.run(
        [
            "docker",
            "buildx",
            "build",
            "--quiet",
            f"--tag={name}",
            f"--build-arg=BASE={BASE_IMAGE}",
            "--load",
            *options,
            str(context),
        ],
        check=True,
        timeout=1800,
    )
    try:
        yield name
    finally:
        subprocess.run(["docker", "rmi", "--force", name], capture_output=True)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The image of the service, built from this very tree."""
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    with built(
        PROJECT, f"--file={DEPLOY / 'Dockerfile'}", f"--secret=id=ca_bundle,src={bundle}"
    ) as name:
        yield name


def open_to_all(folder: Path) -> None:
    """Let the service's user in its container read what lies there."""
    for one in (folder, *folder.parents[:-2]):
        one.chmod(one.stat().st_mode | 0o055)


@pytest.mark.endurance
@pytest.mark.system
@pytest.mark.timeout(2400)
def test_the_container_builds_an_image_with_the_hosts_docker(image: str, tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.add_step("demo", "hello", {"eflows4hpc.yaml": "apt: []\n"})
    open_to_all(tmp_path)
    port = free_port()
    settings = {
        key: value
        for key, value in site.environ.items()
        if key.startswith("CIC_")
        and key
        not in (
            "CIC_CONFIG",
            "CIC_BUILD_TMP_FOLDER",
            "CIC_DATABASE",
            "CIC_HOST",
            "CIC_BUILD_CA_BUNDLE",
        )
    }
    container = subprocess.run(
        [
            "docker",
            "run",
            "--detach",
            "--init",
            f"--publish=127.0.0.1:{port}:5000",
            f"--volume={site.registry}:{site.registry}:ro",
            "--volume=/var/run/docker.sock:/var/run/docker.sock",
            f"--group-add={Path('/var/run/docker.sock').stat().st_gid}",
            *(f"--env={key}={value}" for key, value in settings.items()),
            image,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        service = Service(site, f"http://127.0.0.1:{port}", tmp_path / "none", None)  # type: ignore[arg-type]
        wait_until_ready(f"{service.url}/image_creation/health/ready")
        subprocess.run(
            [
                "docker",
                "exec",
                "--interactive",
                container,
                "flask",
                "--app",
                "builder_service",
                "users",
                "add",
                USER,
            ],
            input=PASSWORD.encode() + b"\n",
            check=True,
            capture_output=True,
        )
        build = service.build(
            {"machine": MACHINE, "workflow": "demo", "step_id": "hello", "push": False}
        )
        assert build["status"] == "FINISHED", build
        sif = service.call("GET", f"/images/download/{build['filename']}")
        assert len(sif.content) == build["size_bytes"]
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True)
        remove_images(site)


class Compose:
    """`docker compose` with the files of a cluster, as a project of its own."""

    def __init__(self, more: Path, environ: Mapping[str, str]) -> None:
        files = (DEPLOY / "compose.yaml", DEPLOY / "compose.cluster.yaml", more)
        self._command = [
            "docker",
            "compose",
            f"--project-name=cic-test-{secrets.token_hex(4)}",
            *(f"--file={file}" for file in files),
        ]
        self._environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("CIC_")},
            **environ,
        }

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr + self.logs()
        return done.stdout

    def logs(self, *services: str) -> str:
        done = subprocess.run(
            [*self._command, "logs", "--no-color", *services],
            env=self._environ,
            text=True,
            capture_output=True,
        )
        return done.stdout


@pytest.fixture
def cluster(image: str, tmp_path: Path) -> Iterator[tuple[Compose, Service]]:
    """The compose cluster with two workers, and a user. What cannot be pulled here has stand-ins."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("DOCKER COMPOSE IS NOT INSTALLED: THE COMPOSE FILES ARE NOT TRIED")
    site = make_site(tmp_path)
    site.add_step("demo", "hello", {"eflows4hpc.yaml": "apt: []\n"})
    site.add_step("demo", "other", {"eflows4hpc.yaml": "apt: []\n", "other": "other"})
    site.add_step(
        "demo",
        "slow",
        {
            "eflows4hpc.yaml": "apt: []\n",
            "post_inst.sh": "#!/bin/sh\necho slowly\nsleep 45\n",
            "once": secrets.token_hex(8),
        },
    )  # no earlier run's layer is the same
    open_to_all(tmp_path)
    prefix = "CIC_REGISTRY_IMAGES_PREFIX"
    ours = {
        "environment": {prefix: site.environ[prefix]},
        "volumes": [f"{site.registry}:{site.registry}:ro"],
    }
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({"services": {"cic": ours, "worker": ours}}))
    port = free_port()
    with built(STANDINS / "postgres") as postgres, built(STANDINS / "redis") as redis:
        compose = Compose(
            more,
            {
                "CIC_IMAGE": image,
                "CIC_POSTGRES_IMAGE": postgres,
                "CIC_REDIS_IMAGE": redis,
                "CIC_SECRET_KEY": secrets.token_hex(32),
                "CIC_DATABASE_PASSWORD": secrets.token_hex(32),
                "CIC_REDIS_PASSWORD": secrets.token_hex(32),
                "CIC_BUILD_BASE_IMAGE": BASE_IMAGE,
                "CIC_PUBLISHED_PORT": f"127.0.0.1:{port}",
                "CIC_REPOSITORIES_WORKFLOW_REPOSITORY": site.environ[
                    "CIC_REPOSITORIES_WORKFLOW_REPOSITORY"
                ],
                "DOCKER_GROUP": str(Path("/var/run/docker.sock").stat().st_gid),
            },
        )
        try:
            compose(*UP)
            service = Service(site, f"http://127.0.0.1:{port}", tmp_path / "none", None)  # type: ignore[arg-type]
            wait_until_ready(f"{service.url}/image_creation/health/ready")
            compose(
                "exec",
                "-T",
                "cic",
                "flask",
                "--app",
                "builder_service",
                "users",
                "add",
                USER,
                stdin=f"{PASSWORD}\n",
            )
            yield compose, service
        finally:
            compose("down", "--volumes", "--timeout=5")
            remove_images(site)


UP = ("up", "--detach", "--no-build", "--scale=worker=2")


@pytest.mark.endurance
@pytest.mark.system
@pytest.mark.timeout(2400)
def test_the_compose_cluster_builds_and_goes_on_after_a_stop(
    cluster: tuple[Compose, Service],
) -> None:
    compose, service = cluster
    request = {"machine": MACHINE, "workflow": "demo", "push": False}
    builds = [
        service.call("POST", "/build/", json={**request, "step_id": step}).json()["id"]
        for step in ("hello", "other")
    ]
    for build in builds:
        status = service.wait_for(build)
        assert status["status"] == "FINISHED", status
        assert "docker buildx build" in service.call("GET", f"/build/{build}/log").text
        sif = service.call("GET", f"/images/download/{status['filename']}")
        assert hashlib.sha256(sif.content).hexdigest() == status["sha256"]

    slow = service.call("POST", "/build/", json={**request, "step_id": "slow"}).json()["id"]
    end = time.monotonic() + 120
    while "slowly\n" not in service.call("GET", f"/build/{slow}/log").text:
        assert time.monotonic() < end
        time.sleep(0.5)
    compose("stop")
    ended = compose("ps", "--all", "--format={{.Service}} {{.ExitCode}}").split("\n")
    assert sorted(filter(None, ended)) == ["cic 0", "postgres 0", "redis 0", "worker 0", "worker 0"]

    compose(*UP)
    wait_until_ready(f"{service.url}/image_creation/health/ready")
    assert service.wait_for(slow)["status"] == "FINISHED"
    assert len(service.call("GET", "/image/").json()["images"]) == 3
    said = compose.logs("cic", "worker")
    assert (
        len(re.findall(r"worker \S+ begins", said)) == 4
        and len(re.findall(r"worker \S+ ends", said)) == 2
    )
    assert "Traceback" not in said, said


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
