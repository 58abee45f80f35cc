"""Make a site for system tests: a workflow registry, folders, an image registry, and the service.

Everything here is real: git, processes, an image registry that asks for a password, the service as
operators start it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

from config import load_settings
from config.settings import Settings
from image_builder.errors import InvalidRequest
from service.app import create_app
from service.db import accounts

PROJECT = Path(__file__).resolve().parents[2]
BASE_IMAGE = os.environ.get("CIC_TEST_BASE", "cic-test-base:1")
BASE_IMAGE_ARM64 = os.environ.get("CIC_TEST_BASE_ARM64", "cic-test-base-arm64:1")
RUNTIME_BASE_IMAGE = os.environ.get("CIC_TEST_RUNTIME_BASE", "cic-test-runtime:1")
USER, PASSWORD = "ada", "correct horse battery staple"
MACHINE = {"platform": "linux/amd64", "architecture": "x86_64", "container_engine": "singularity"}
RUN = secrets.token_hex(8)
"""In a step's folder, it keeps the tests of this process from finding an image that others made."""
HELLO = {
    "eflows4hpc.yaml": "apt:\n  - bc\npip:\n  - six\n",
    "hello.py": "import six, subprocess\n"
    'print("hello", subprocess.check_output(["bc"], input=b"6*7\\n").decode().strip())\n',
    "run-of-tests.txt": RUN,
}
"""A step that needs a Debian package and a Python one, and prints `hello 42`."""
SEED_REQUEST = """{
  "machine": {
    "platform": "linux/amd64",
    "architecture": "rome",
    "container_engine": "singularity",
    "mpi": "openmpi@4",
    "gpu": "cuda@10"},
  "workflow":"minimal_workflow",
  "step_id" :"wordcount",
  "force": False
}
"""
"""The first documentation's example, with Python's `False`."""


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def git(folder: Path, *arguments: str) -> str:
    """Run git in `folder` as somebody, and return what it printed."""
    identity = (
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "-c",
        "init.defaultBranch=main",
    )
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@dataclasses.dataclass(frozen=True)
class Site:
    """A configured site below `root`; `environ` is what its processes are started with."""

    root: Path
    registry: Path
    environ: Mapping[str, str]

    @property
    def settings(self) -> Settings:
        return load_settings(environ=self.environ)

    @property
    def tmp_folder(self) -> Path:
        return Path(self.environ["CIC_BUILD_TMP_FOLDER"])

    def with_environ(self, **changes: str) -> Site:
        """Return the same site with other settings."""
        return dataclasses.replace(self, environ={**self.environ, **changes})

    def add_step(self, workflow: str, step: str, files: Mapping[str, str]) -> str:
        """Commit a step's files to the workflow registry; returns the commit."""
        folder = self.registry / workflow / step
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            if text.startswith("#!"):
                path.chmod(0o755)
        git(self.registry, "add", "--all")
        git(self.registry, "commit", "-qm", f"{workflow}/{step}")
        return git(self.registry, "rev-parse", "HEAD")


def make_site(root: Path) -> Site:
    """Return a site on the test base images: an empty workflow registry, no image registry."""
    registry = root / "registry"
    registry.mkdir(parents=True)
    git(registry, "init", "-q")
    (registry / "README.md").write_text("Workflows for tests.\n", "utf-8")
    git(registry, "add", "README.md")
    git(registry, "commit", "-qm", "Begin")
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith("CIC_")},
        "CIC_CONFIG": str(PROJECT / "config" / "configuration.py"),
        "CIC_REPOSITORIES_WORKFLOW_REPOSITORY": f"file://{registry}",
        "CIC_REPOSITORIES_MIRROR_MAX_AGE_S": "0",
        "CIC_BUILD_TMP_FOLDER": str(root / "tmp"),
        "CIC_BUILD_BASE_IMAGE": f'{{"linux/amd64": "{BASE_IMAGE}", "linux/arm64": "{BASE_IMAGE_ARM64}"}}',
        "CIC_BUILD_MAX_CONCURRENT_BUILDS": "2",
        "CIC_MAX_ACTIVE_BUILDS_PER_USER": "20",
        "CIC_CALLS_PER_MINUTE_PER_USER": "1000000",
        "CIC_COSTLY_CALLS_PER_MINUTE_PER_USER": "1000000",
        "CIC_CALLS_PER_MINUTE_PER_ADDRESS": "1000000",
        "CIC_BUILD_CA_BUNDLE": bundle if Path(bundle).exists() else "",
        "CIC_REGISTRY_IMAGES_PREFIX": f"cic-test-{secrets.token_hex(4)}/",
        "CIC_DATABASE": f"sqlite:///{root / 'db.sqlite'}",
        "CIC_SECRET_KEY": secrets.token_hex(32),
        "CIC_HOST": "127.0.0.1",
    }
    return Site(root=root, registry=registry, environ=environ)


@dataclasses.dataclass(frozen=True)
class Service:
    """A running service; `url` is its address without the application root."""

    site: Site
    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def call(
        self, method: str, path: str, *, user: str = USER, password: str = PASSWORD, **more: Any
    ) -> requests.Response:
        """Make one REST call; `path` begins behind the application root."""
        return requests.request(
            method, f"{self.url}/image_creation{path}", auth=(user, password), timeout=60, **more
        )

    def wait_for(
        self, build_id: str, timeout_s: float = 300, *, user: str = USER
    ) -> dict[str, Any]:
        """Poll as clients do until the build has ended; returns its last status."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status: dict[str, Any] = self.call("GET", f"/build/{build_id}", user=user).json()
            if status["status"] in ("FINISHED", "FAILED"):
                return status
            time.sleep(0.3)
        log = self.log.read_text("utf-8", "replace")[-3000:]
        raise AssertionError(f"build {build_id} did not end: {status}\n{log}")

    def submit(self, request: Mapping[str, Any]) -> str:
        """Submit a request, and return the build's id."""
        answer = self.call("POST", "/build/", json=request)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Submit a request and wait for its end."""
        return self.wait_for(self.submit(request))


@contextlib.contextmanager
def running_service(
    site: Site, *, name: str = "service", port: int | None = None, with_user: bool = True
) -> Iterator[Service]:
    """Run the service, started as the README shows, with one user."""
    port = port or free_port()
    if with_user:
        add_user(site, USER, PASSWORD)
    log = site.root / f"{name}.log"
    process = start_service(site.with_environ(CIC_PORT=str(port)), log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_alive(f"{url}/image_creation/health/live", process, log)
        yield Service(site, url, log, process)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_service(site: Site, log: Path) -> subprocess.Popen[bytes]:
    """Start the service of a site, which writes into `log`; whoever starts it ends it."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "builder_service.py"],
            cwd=PROJECT,
            env=dict(site.environ),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )


def listens(port: int) -> bool:
    """Return whether something takes connections at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def add_user(site: Site, name: str, password: str, *, is_admin: bool = False) -> None:
    """Make a user as `flask users add` does, without its start; one who exists already stays."""
    app = create_app(site.settings)
    engine = app.extensions["cic"].engine
    with contextlib.suppress(InvalidRequest):
        accounts.add_user(engine, name, password, is_admin=is_admin)
    engine.dispose()


def wait_until_alive(
    url: str,
    process: subprocess.Popen[bytes],
    log: Path,
    timeout_s: float = 180,
    *,
    verify: bool | str = True,
) -> None:
    """Wait until `url` answers with 200, or fail with what the process wrote."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=5, verify=verify).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer:\n{log.read_text('utf-8', 'replace')[-3000:]}")


def own_tag(status: Mapping[str, Any]) -> str:
    """Return the tag that images of a build's identity alone have in the image registry."""
    return f"identity-{status['identity'].removeprefix('sha256:')}"


MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)
"""The kinds of manifests that a registry has."""


@dataclasses.dataclass(frozen=True)
class ImageRegistry:
    """A running image registry that asks for a password."""

    host: str
    user: str
    password: str

    @property
    def environ(self) -> dict[str, str]:
        """The settings of a site that pushes its images there, below `group/`."""
        return {
            "CIC_REGISTRY_URL": self.host,
            "CIC_REGISTRY_USER": self.user,
            "CIC_REGISTRY_TOKEN": self.password,
            "CIC_REGISTRY_IMAGES_PREFIX": f"{self.host}/group/",
        }

    def tags(self, repository: str) -> list[str]:
        url = f"http://{self.host}/v2/{repository}/tags/list"
        answer = requests.get(url, auth=(self.user, self.password), timeout=10)
        return sorted(answer.json()["tags"] or []) if answer.status_code == 200 else []

    def digest(self, repository: str, tag: str) -> str:
        """Return the digest of what a tag means."""
        answer = requests.head(
            f"http://{self.host}/v2/{repository}/manifests/{tag}",
            auth=(self.user, self.password),
            headers={"Accept": MANIFESTS},
            timeout=10,
        )
        answer.raise_for_status()
        return answer.headers["Docker-Content-Digest"]

    def get(self, repository: str, what: str) -> Any:
        """Return the JSON of a repository: `manifests/…` or `blobs/sha256:…`."""
        answer = requests.get(
            f"http://{self.host}/v2/{repository}/{what}",
            auth=(self.user, self.password),
            headers={"Accept": MANIFESTS},
            timeout=10,
        )
        answer.raise_for_status()
        return answer.json()


@contextlib.contextmanager
def running_image_registry(root: Path) -> Iterator[ImageRegistry]:
    """Run Debian's docker-registry on a free port of the loopback interface, with one user."""
    program = shutil.which("docker-registry")
    assert program, "docker-registry is not installed: scripts/setup --tests installs it"
    root.mkdir()
    user, password = "pusher", f"canary-{secrets.token_hex(16)}"
    hashed = subprocess.run(
        ["htpasswd", "-niB", user], input=password.encode(), capture_output=True, check=True
    )
    (root / "htpasswd").write_bytes(hashed.stdout)
    port = free_port()
    (root / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\nauth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n",
        "utf-8",
    )
    log = root / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", str(root / "config.yml")],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_until_alive(f"http://127.0.0.1:{port}/", process, log)
        yield ImageRegistry(f"127.0.0.1:{port}", user, password)
    finally:
        process.terminate()
        process.wait(10)
