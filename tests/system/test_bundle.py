"""Builds from bundles on a host without network: a Docker daemon of its own, behind a loopback
interface alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from image_builder.bundle.archive import MANIFEST
from image_builder.docker import label_names
from image_builder.pipeline import plan
from image_builder.request.parsing import parse_request
from tests.support.daemon_images import remove_images
from tests.support.signing import make_key
from tests.support.site import (
    HELLO,
    MACHINE,
    PROJECT,
    RUN,
    RUNTIME_BASE_IMAGE,
    Site,
    make_site,
)
from tests.system.own_docker import OwnDocker, own_docker
from tests.system.test_spack_standin import TARGET, standin_base

pytestmark = pytest.mark.system

SOLVER = {
    "eflows4hpc.yaml": "apt: [bc]\npip: [six]\nspack:\n  specs: [heat, lz4@1.9~mpi]\n",
    "run.py": "import six\n",
    "run-of-tests.txt": RUN,
}


@pytest.fixture(scope="module")
def alone() -> Iterator[OwnDocker]:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a host without network. This user may not make one.")
    with own_docker(is_alone=True) as docker:
        yield docker


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request's file, and the site where its bundle is made."""

    site: Site
    file: Path

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.file.read_text())
        return fields


def ask(site: Site, **fields: Any) -> Asked:
    file = site.root / "request.json"
    file.write_text(json.dumps(fields))
    return Asked(site, file)


def make_bundle(asked: Asked, name: str = "bundle.tar", *, more: Sequence[str] = ()) -> Path:
    """Make a bundle with the command that operators use."""
    bundle = asked.site.root / name
    ended = subprocess.run(
        [
            sys.executable,
            "cic_builder.py",
            "bundle",
            "-r",
            str(asked.file),
            "--output",
            str(bundle),
            *more,
        ],
        cwd=PROJECT,
        env=dict(asked.site.environ),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    size, share = re.search(
        r"^size: (\d+) bytes, ([0-9.]+) of", ended.stdout, re.MULTILINE
    ).groups()  # type: ignore[union-attr]
    assert int(size) == bundle.stat().st_size
    assert float(share) <= 1.2
    return bundle


def secluded(root: Path, asked: Asked) -> Site:
    """A site whose every setting that names another machine names one that is not there."""
    root.mkdir()
    return Site(
        root=root,
        registry=root / "none",
        environ={
            **{
                name: value
                for name, value in asked.site.environ.items()
                if "PROXY" not in name.upper()
            },
            "CIC_REPOSITORIES_WORKFLOW_REPOSITORY": "https://registry.invalid/workflows.git",
            "CIC_REPOSITORIES_SOFTWARE_REPOSITORY": "https://registry.invalid/software.git",
            "CIC_BUILD_SPACK_CFG": "https://registry.invalid/spack.git",
            "CIC_BUILD_BASE_IMAGE": "registry.invalid/base:1",
            "CIC_BUILD_TMP_FOLDER": str(root / "tmp"),
            "CIC_REGISTRY_URL": "registry.invalid",
            "CIC_PROOF_KEY": "",
        },
    )


def build_alone(
    docker: OwnDocker, site: Site, asked: Asked, bundle: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    return docker.on_host(
        sys.executable,
        "cic_builder.py",
        "--bundle",
        str(bundle),
        "--request",
        str(asked.file),
        *more,
        environ=site.environ,
        timeout_s=1800,
        cwd=PROJECT,
    )


def interfaces(docker: OwnDocker) -> dict[str, int]:
    """The interfaces of the daemon's host, and how many packets each has sent."""
    lines = Path(f"/proc/{docker.host}/net/dev").read_text().splitlines()[2:]
    return {
        name.strip(): int(counters.split()[9])
        for name, _, counters in (line.partition(":") for line in lines)
    }


def manifest_of(bundle: Path) -> dict[str, Any]:
    printed = subprocess.run(
        ["tar", "--extract", "--to-stdout", "--file", str(bundle), MANIFEST],
        check=True,
        capture_output=True,
    ).stdout
    manifest: dict[str, Any] = json.loads(printed)
    return manifest


def printed(ended: subprocess.CompletedProcess[str], key: str) -> str:
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    match = re.search(rf"^{key}: (.*)$", ended.stdout, re.MULTILINE)
    assert match is not None, ended.stdout
    return match[1]


def run_in(sif: str, *command: str) -> str:
    """What a command prints in the SIF."""
    return subprocess.run(
        ["apptainer", "exec", "--userns", "--cleanenv", sif, *command],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_debian_and_python_packages_come_from_a_signed_bundle(
    tmp_path: Path, alone: OwnDocker
) -> None:
    key = make_key(tmp_path / "key.pem", "ed25519")
    public = tmp_path / "public.pem"
    subprocess.run(["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(public)], check=True)
    site = make_site(tmp_path / "site").with_environ(CIC_PROOF_KEY=str(key))
    site.add_step("demo", "hello", HELLO)
    asked = ask(site, machine=MACHINE, workflow="demo", step_id="hello")
    bundle = make_bundle(asked)
    assert bundle.read_bytes() == make_bundle(asked, "again.tar").read_bytes()
    offline = secluded(tmp_path / "offline", asked)

    refused = build_alone(alone, offline, asked, bundle)
    assert (refused.returncode, interfaces(alone)) == (
        2,
        {"lo": interfaces(alone)["lo"], "docker0": 0},
    )
    assert "--keys" in refused.stderr
    ended = build_alone(alone, offline, asked, bundle, "--keys", str(public))

    assert run_in(printed(ended, "sif"), "python3", "/hello/hello.py") == "hello 42\n"
    assert {name: sent for name, sent in interfaces(alone).items() if name != "lo"} == {
        "docker0": 0
    }
    outside = plan(parse_request(asked.fields), site.settings.library)
    labels = inspect(alone, printed(ended, "image_id"))
    assert labels[label_names.IDENTITY] == outside.identity == manifest_of(bundle)["identity"]


def inspect(docker: OwnDocker, image: str) -> dict[str, str]:
    """The labels of an image of the daemon that is alone."""
    said = docker.on_host("docker", "image", "inspect", image, environ=os.environ)
    labels: dict[str, str] = json.loads(said.stdout)[0]["Config"]["Labels"]
    return labels


def test_spack_builds_a_slim_image_from_its_lock_and_sources(
    tmp_path: Path, alone: OwnDocker
) -> None:
    catalogue, config = tmp_path / "catalogue", tmp_path / "spack-config"
    (catalogue / "packages" / "heat").mkdir(parents=True)
    (catalogue / "repo.yaml").write_text("repo:\n  namespace: site\n")
    (catalogue / "packages" / "heat" / "package.py").write_text("class Heat:\n    pass\n")
    config.mkdir()
    (config / "config.yaml").write_text("config: {}\n")
    with standin_base(tmp_path) as base:
        site = make_site(tmp_path / "site").with_environ(
            CIC_BUILD_BASE_IMAGE=base,
            CIC_BUILD_RUNTIME_BASE_IMAGE=RUNTIME_BASE_IMAGE,
            CIC_REPOSITORIES_SOFTWARE_REPOSITORY=str(catalogue),
            CIC_BUILD_SPACK_CFG=str(config),
        )
        site.add_step("spack", "solver", SOLVER)
        machine = {**MACHINE, "architecture": TARGET, "mpi": "openmpi@4"}
        asked = ask(site, machine=machine, workflow="spack", step_id="solver", slim=True)
        bundle = make_bundle(asked)
        outside = plan(parse_request(asked.fields), site.settings.library)
        remove_images(site)
    offline = secluded(tmp_path / "offline", asked)

    ended = build_alone(alone, offline, asked, bundle, "--allow-unsigned")

    sif = printed(ended, "sif")
    assert run_in(sif, "heat") == f"heat 1.0 for {TARGET}\n"
    assert run_in(sif, "python3", "-c", "import six; print(six.__name__)") == "six\n"
    assert run_in(sif, "sh", "-c", "echo 6*7 | bc") == "42\n"
    manifest = manifest_of(bundle)
    labels = inspect(alone, printed(ended, "image_id"))
    assert labels[label_names.IDENTITY] == outside.identity == manifest["identity"]
    assert labels[label_names.SLIM] == "true"
    lock = next(file for file in manifest["files"] if file["path"] == "spack.lock")
    assert run_in(sif, "sha256sum", "/opt/cic/spack.lock").split()[0] == lock["sha256"]
    assert ended.stderr.count("from a mirror") == 3
    assert {name: sent for name, sent in interfaces(alone).items() if name != "lo"} == {
        "docker0": 0
    }
