"""A description whose scripts look for what is not theirs, on the machine's Docker: they find
nothing.

That they do not reach the host's network is shown in `test_isolation.py`, on a Docker with the
firewall's rules.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image_builder.docker import container, daemon
from tests.support.daemon_images import remove_images
from tests.support.site import (
    MACHINE,
    PROJECT,
    ImageRegistry,
    Service,
    Site,
    make_site,
    running_service,
)
from tests.support.spack_site import SPACK_BASE, SPACK_ROOT

pytestmark = pytest.mark.system

SNOOP = """
import glob, json, os, socket, stat, sys

SHARED = "/run/cic/packages"

def attempt(what, action):
    try:
        action()
        found["done"].append(what)
    except (OSError, ValueError) as error:
        found["refused"].append("%s: %s" % (what, error))

def content(path):
    with open(path, "rb") as file:
        return file.read(1 << 16).decode("utf-8", "replace")

def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)

def device(major, minor):
    os.mknod("/tmp/device", stat.S_IFBLK | 0o600, os.makedev(major, minor))
    try:
        content("/tmp/device")
    finally:
        os.unlink("/tmp/device")

def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)

def below(*folders):
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                yield os.path.join(parent, name)

paths = json.load(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "paths.json")))
found = {"done": [], "refused": [], "texts": {}, "writable": []}
for path in [*glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline"), "/proc/self/status",
             "/proc/mounts", *below("/run", "/var/run", "/root", "/tmp", "/home", "/dev/shm")]:
    try:
        mode = os.stat(path).st_mode  # Spack 1.2 has the FIFO of its jobserver below /tmp: nobody else writes there
        silent = stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)
        if not silent and "ca.pem" not in path and not path.startswith(SHARED):
            found["texts"][path] = content(path)
    except OSError:
        pass
for path in paths:
    attempt("read " + path, lambda: os.stat(path))
    attempt("read through /proc/1/root " + path, lambda: os.stat("/proc/1/root" + path))
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
             "/run/buildkit/buildkitd.sock"):
    attempt("connect " + path, lambda: connect(path))
for major, minor in ((8, 0), (8, 1), (253, 0), (254, 0), (259, 0)):
    attempt("read device %d:%d" % (major, minor), lambda: device(major, minor))
for path in ("/dev/mem", "/proc/kcore", "/dev/kmsg"):
    attempt("read " + path, lambda: int("") if not content(path) else None)
attempt("write sysrq", lambda: write("/proc/sysrq-trigger", "h"))
attempt("write sysctl", lambda: write("/proc/sys/kernel/hostname", "hostile"))
attempt("write cgroup", lambda: os.mkdir("/sys/fs/cgroup/memory/hostile"))
attempt("set the clock", lambda: __import__("time").clock_settime(0, __import__("time").time()))
for line in content("/proc/mounts").splitlines():
    place, options = line.split()[1], line.split()[3].split(",")
    if "rw" in options and os.path.isdir(place) and place != "/":
        found["writable"].append(place)
for place in ["/tmp", "/var/cache/apt", "/var/cache", "/root", "/root/.cache", "/var/tmp", "/opt", *found["writable"]]:
    if place == SHARED:  # where packages of the operator's recipes lie, which is what a package is
        continue
    try:
        write(os.path.join(place, "poison"))
    except OSError:
        pass
write(sys.argv[1], json.dumps(found))
print("snooped", len(found["texts"]))
"""
"""It writes what it found into the file that it is given."""

SETUP = (
    "import subprocess, sys\nfrom setuptools import setup\n"
    "subprocess.check_call([sys.executable, '/hostile/snoop.py', '/found-by-setup.json'])\n"
    "setup(name='hostile', version='1')\n"
)
STRONG = (12, 16, 17, 19, 21, 22, 39)
"""CAP_NET_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, BPF: with these a step
could leave.
"""
PACKAGE = """
import os
from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Hostile(Package):
    has_code = False
    version("1.0")

    def install(self, spec, prefix):
        mkdirp(prefix.share)
        Executable("python3")(join_path(self.package_dir, "snoop.py"), prefix.share.join("found.json"))
"""
MAY_WRITE = {
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/proc",
    "/run/cic/private",
    "/sys/fs/cgroup",
}


@pytest.fixture
def site(tmp_path: Path, image_registry: ImageRegistry) -> Iterator[Site]:
    """A site with secrets of every kind, and a neighbour that builds at the same time."""
    made = make_site(tmp_path / "site").with_environ(
        CIC_REGISTRY_URL=image_registry.host,
        CIC_REGISTRY_USER=image_registry.user,
        CIC_REGISTRY_TOKEN=image_registry.password,
        CIC_CAPTCHA_SITE_KEY=f"canary-{secrets.token_hex(8)}",
    )
    made.add_step(
        "demo",
        "neighbour",
        {
            "eflows4hpc.yaml": "",
            "private": f"canary-{secrets.token_hex(8)}",
            "post_inst.sh": "sleep 20\n",
        },
    )
    made.add_step(
        "demo",
        "hostile",
        {
            "eflows4hpc.yaml": "",
            "requirements.txt": "./package\n",
            "package/setup.py": SETUP,
            "snoop.py": SNOOP,
            "paths.json": json.dumps(paths_of(made)),
            "post_inst.sh": "python3 snoop.py /found-by-post-install.json\n",
        },
    )
    made.add_step(
        "demo",
        "innocent",
        {
            "eflows4hpc.yaml": "pip: [six]\n",
            # New each time, or BuildKit would remember the step from an earlier run of the tests.
            "post_inst.sh": f"# {secrets.token_hex()}\necho POISONED: $(find / -xdev -name poison)\n",
        },
    )
    yield made
    remove_images(made)


def paths_of(site: Site) -> list[str]:
    """What lies on the host and not in a build."""
    return [
        str(path)
        for path in (
            site.root,
            site.tmp_folder,
            site.tmp_folder / "builds",
            site.registry,
            site.root / "db.sqlite",
            PROJECT / "config" / "configuration.py",
        )
    ]


def request(step: str) -> dict[str, Any]:
    return {
        "machine": MACHINE | {"container_engine": "docker"},
        "workflow": "demo",
        "step_id": step,
        "push": False,
    }


def submitted(service: Service, step: str) -> str:
    answer = service.call("POST", "/build/", json=request(step))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def everything_in(image: str) -> bytes:
    """All layers of an image and what is known of it."""
    saved = subprocess.run(["docker", "save", image], check=True, capture_output=True).stdout
    return (
        saved + subprocess.run(["docker", "inspect", image], check=True, capture_output=True).stdout
    )


def test_a_hostile_description_finds_nothing(site: Site) -> None:
    with running_service(site) as service:
        neighbour = submitted(service, "neighbour")
        status = service.wait_for(submitted(service, "hostile"))
        log = service.call("GET", f"/build/{status['id']}/log").text
        assert status["status"] == "FINISHED", log[-3000:]
        innocent = service.wait_for(submitted(service, "innocent"))
        innocent_log = service.call("GET", f"/build/{innocent['id']}/log").text
        assert service.wait_for(neighbour)["status"] == "FINISHED"

    canaries = canaries_of(site)
    for name in ("post-install", "setup"):
        report = daemon.read_file(status["image_id"], f"/found-by-{name}.json", 64 * 1024**2)
        assert report is not None, log[-3000:]
        assert_nothing_found(report, log, canaries, MAY_WRITE)
    whole = everything_in(status["image_id"])
    for canary in canaries:
        assert canary.encode() not in whole
    assert innocent["status"] == "FINISHED", innocent_log[-2000:]
    assert any(line.rstrip().endswith("POISONED:") for line in innocent_log.splitlines()), (
        innocent_log[-2000:]
    )


@pytest.mark.timeout(1800)
@pytest.mark.skipif(SPACK_ROOT is None, reason="CIC_SPACK_ROOT IS NOT SET: NO REAL SPACK")
def test_a_hostile_package_finds_nothing(site: Site, tmp_path: Path) -> None:
    """Its recipe is the operator's, who may have been careless."""
    package = tmp_path / "catalogue" / "packages" / "hostile"
    package.mkdir(parents=True)
    (tmp_path / "catalogue" / "repo.yaml").write_text("repo:\n  namespace: hostile\n")
    for name, text in {
        "package.py": PACKAGE,
        "snoop.py": SNOOP,
        "paths.json": json.dumps(paths_of(site)),
    }.items():
        (package / name).write_text(text)
    site.add_step("demo", "package", {"eflows4hpc.yaml": "spack:\n  specs: [hostile]\n"})
    with running_service(
        site.with_environ(
            CIC_BUILD_BASE_IMAGE=SPACK_BASE,
            CIC_REPOSITORIES_SOFTWARE_REPOSITORY=str(tmp_path / "catalogue"),
        )
    ) as service:
        status = service.wait_for(submitted(service, "package"), 1500)
        log = service.call("GET", f"/build/{status['id']}/log").text
    assert status["status"] == "FINISHED", log[-3000:]
    report = container.run_probe(
        status["image_id"], "linux/amd64", ("cat", "/opt/view/share/found.json")
    )
    assert_nothing_found(report, log, canaries_of(site), {*MAY_WRITE, "/run/cic/packages"})


ESCAPE = """
mkdir /.singularity.d
ln -s {victim}/file /.singularity.d/runscript
ln -s {victim} /.singularity.d/env
ln -s {victim}/new /.singularity.d/labels.json
rm -rf /var/tmp && ln -s {victim} /var/tmp
ln -s ../../../../..{victim} /singularity
"""


@pytest.mark.parametrize("compressor", ["zstd", "lzo"])
def test_an_image_that_points_at_the_host_changes_nothing_there(
    site: Site, tmp_path: Path, compressor: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    site.add_step(
        "demo",
        "escape",
        {"eflows4hpc.yaml": "", "post_inst.sh": ESCAPE.format(victim=victim)},
    )
    with running_service(site.with_environ(CIC_BUILD_SIF_COMPRESSOR=compressor)) as service:
        asked = request("escape") | {"machine": MACHINE | {"container_engine": "singularity"}}
        status = service.wait_for(service.call("POST", "/build/", json=asked).json()["id"])
        log = service.call("GET", f"/build/{status['id']}/log").text
    assert [path.name for path in victim.iterdir()] == ["file"]
    assert (victim / "file").read_text() == "precious"
    if compressor == "zstd":
        assert status["status"] == "FINISHED" and "of the image is left out" in log, log[-2000:]
    else:  # Singularity itself unpacks it
        assert (
            status["error_code"] == "CONVERSION_FAILED" and "is not a folder" in status["message"]
        )


def canaries_of(site: Site) -> list[str]:
    """What nobody's build may come across: the service's secrets and a neighbour's file."""
    canaries = [
        site.environ[key]
        for key in ("CIC_REGISTRY_TOKEN", "CIC_SECRET_KEY", "CIC_CAPTCHA_SITE_KEY")
    ]
    return [*canaries, (site.registry / "demo" / "neighbour" / "private").read_text()]


def assert_nothing_found(report: str, log: str, canaries: list[str], may_write: set[str]) -> None:
    found = json.loads(report)
    assert found["done"] == []
    assert len(found["refused"]) > 20
    assert "CIC_" not in "".join(
        text for path, text in found["texts"].items() if path.endswith("/environ")
    )
    assert set(found["writable"]) <= may_write
    assert is_held(found["texts"]["/proc/self/status"])
    for canary in canaries:
        assert canary not in report
        assert canary not in log


def is_held(status: str) -> bool:
    """Whether `/proc/self/status` tells of a process with a filter of system calls and no strong
    capability.
    """
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    capabilities = int(fields["CapEff"], 16)
    return fields["Seccomp"].strip() == "2" and not any(capabilities >> bit & 1 for bit in STRONG)
