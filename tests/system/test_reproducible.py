"""Two whole builds of the same, on two empty daemons, from frozen mirrors: one file, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon_images import remove_tags
from tests.support.frozen_mirror import DEB, WHEEL, make_mirror
from tests.support.site import BASE_IMAGE, PROJECT, RUN, Site, make_site
from tests.system.own_docker import GATEWAY, OwnDocker, listening, own_docker
from tests.system.test_spack_standin import TARGET, described

pytestmark = [
    pytest.mark.system,
    pytest.mark.endurance,  # minutes of a processor for each of three builds
    pytest.mark.skipif(
        os.geteuid() != 0, reason="NOT TESTED: two builds on two daemons need root."
    ),
]
PORT = 8090
STEP = {
    **described("needy", "openmpi@4", more=f"apt: [bc, {DEB}]\npip: [six, {WHEEL}]\n"),
    "run-of-tests.txt": RUN,
}
REQUEST = {
    "machine": {
        "platform": "linux/amd64",
        "architecture": TARGET,
        "container_engine": "singularity",
    },
    "workflow": "demo",
    "step_id": "same",
    "push": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The stand-in's base, which knows the frozen mirrors alone."""
    folder, name = tmp_path_factory.mktemp("base"), f"cic-test-frozen-{secrets.token_hex(4)}:1"
    shutil.copy(PROJECT / "tests" / "support" / "standin" / "spack", folder / "spack")
    (folder / "sources.list").write_text(f"deb [trusted=yes] http://{GATEWAY}:{PORT}/debian ./\n")
    (folder / "pip.conf").write_text(f"[global]\ntrusted-host = {GATEWAY}\n")
    (folder / "Dockerfile").write_text(
        f"FROM {BASE_IMAGE}\nRUN rm -rf /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/*proxy*\n"
        "COPY sources.list /etc/apt/\nCOPY pip.conf /etc/\n"
        "COPY --chmod=755 spack /usr/local/bin/spack\n"
    )
    command = "docker buildx build --quiet --provenance=false --load --tag"
    subprocess.run([*command.split(), name, str(folder)], check=True, stdout=subprocess.DEVNULL)
    yield name
    remove_tags(name.split(":")[0])


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    make_mirror(folder)
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The workflow registry of both sites."""
    site = make_site(tmp_path_factory.mktemp("registry"))
    site.add_step("demo", "same", STEP)
    return site


def make(own: OwnDocker, site: Site, request: dict[str, Any]) -> Path:
    """Build on a daemon, and return the path of the SIF."""
    done = own.on_host(
        sys.executable,
        "cic_builder.py",
        "--request",
        "-",
        environ=site.environ,
        cwd=PROJECT,
        input=json.dumps(request),
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-6000:]
    return Path(dict(line.split(": ", 1) for line in done.stdout.splitlines())["sif"])


def digest(sif: Path) -> str:
    return hashlib.sha256(sif.read_bytes()).hexdigest()


def test_two_builds_and_one_from_the_lock_are_one_file(
    registry: Site, base: str, mirror: Path, tmp_path: Path
) -> None:
    sifs = []
    for number in (1, 2):
        site = registry.with_environ(
            CIC_BUILD_BASE_IMAGE=base,
            CIC_BUILD_TMP_FOLDER=str(tmp_path / f"tmp-{number}"),
            CIC_BUILD_PIP_INDEX_URL=f"http://{GATEWAY}:{PORT}/simple/",
            CIC_BUILD_CA_BUNDLE="",
            CIC_BUILD_JOBS=str(number),
        )
        with own_docker(image=base) as own, listening(own.world, PORT, mirror):
            sifs.append(make(own, site, REQUEST))
            if number == 2:
                again = {"from_lock": sifs[0].name, "force": True}
                sifs.append(make(own, site, again))
    assert_equal(sifs)


def assert_equal(sifs: list[Path]) -> None:
    """Say which files differ if the SIFs do; diffoscope judges, too, where it is installed."""
    digests = [digest(sif) for sif in sifs]
    assert len(set(digests)) == 1, "\n".join(
        differences(sifs[0], sif) for sif in sifs[1:] if digest(sif) != digests[0]
    )
    if shutil.which("diffoscope"):
        judged = subprocess.run(["diffoscope", *sifs[:2]], capture_output=True, text=True)
        assert judged.returncode == 0 and not judged.stdout


def differences(one: Path, other: Path) -> str:
    """What the program for it says, of which this is the real use."""
    return subprocess.run(
        [sys.executable, "cic_builder.py", "compare", str(one), str(other)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
