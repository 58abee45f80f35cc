"""A description whose scripts look for what is not theirs, on the machine's Docker: they find nothing.

That they do not reach the host's network is shown in `test_isolation.py`, on a Docker with the firewall's rules.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image_builder import docker
from tests.system.conftest import remove_images
from tests.system.site import MACHINE, ImageRegistry, Service, Site, make_site, running_service

pytestmark = pytest.mark.system

SNOOP = '''
import glob, json, os, socket, stat, sys

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

paths = json.load(open("/hostile/paths.json"))
found = {"done": [], "refused": [], "texts": {}, "writable": []}
for path in [*glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline"), "/proc/self/status",
             "/proc/mounts", *below("/run", "/var/run", "/root", "/tmp", "/home", "/dev/shm")]:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode) and "ca.pem" not in path:
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
    try:
        write(os.path.join(place, "poison"))
    except OSError:
        pass
write(sys.argv[1], json.dumps(found))
print("snooped", len(found["texts"]))
'''
"""It writes what it found into the file that it is given."""

SETUP = ("import subprocess, sys\nfrom setuptools import setup\n"
         "subprocess.check_call([sys.executable, '/hostile/snoop.py', '/found-by-setup.json'])\n"
         "setup(name='hostile', version='1')\n")
STRONG = (12, 16, 17, 19, 21, 22, 39)
"""CAP_NET_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, BPF: with these a step could leave."""
MAY_WRITE = {"/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/proc", "/run/cic/private", "/sys/fs/cgroup"}


@pytest.fixture
def site(tmp_path: Path, image_registry: ImageRegistry) -> Iterator[Site]:
    """A site with secrets of every kind, and a neighbour that builds at the same time."""
    made = make_site(tmp_path / "site").with_environ(
        CIC_REGISTRY_URL=image_registry.host, CIC_REGISTRY_USER=image_registry.user,
        CIC_REGISTRY_TOKEN=image_registry.password, CIC_CAPTCHA_SITE_KEY=f"canary-{secrets.token_hex(8)}")
    made.add_step("demo", "neighbour", {
        "eflows4hpc.yaml": "", "private": f"canary-{secrets.token_hex(8)}", "post_inst.sh": "sleep 20\n"})
    paths = [str(path) for path in (made.root, made.tmp_folder, made.tmp_folder / "builds", made.registry,
                                    made.root / "db.sqlite", Path.cwd() / "config" / "configuration.py")]
    made.add_step("demo", "hostile", {
        "eflows4hpc.yaml": "", "requirements.txt": "./package\n", "package/setup.py": SETUP, "snoop.py": SNOOP,
        "paths.json": json.dumps(paths), "post_inst.sh": "python3 snoop.py /found-by-post-install.json\n"})
    made.add_step("demo", "innocent", {
        "eflows4hpc.yaml": "pip: [six]\n", "post_inst.sh": "echo POISONED: $(find / -xdev -name poison)\n"})
    yield made
    remove_images(made)


def request(step: str) -> dict[str, Any]:
    return {"machine": MACHINE | {"container_engine": "docker"}, "workflow": "demo", "step_id": step, "push": False}


def submitted(service: Service, step: str) -> str:
    answer = service.call("POST", "/build/", json=request(step))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def everything_in(image: str) -> bytes:
    """All layers of an image and what is known of it."""
    saved = subprocess.run(["docker", "save", image], check=True, capture_output=True).stdout
    return saved + subprocess.run(["docker", "inspect", image], check=True, capture_output=True).stdout


def test_a_hostile_description_finds_nothing(site: Site) -> None:
    with running_service(site) as service:
        neighbour = submitted(service, "neighbour")
        status = service.wait_for(submitted(service, "hostile"))
        log = service.call("GET", f"/build/{status['id']}/log").text
        assert status["status"] == "FINISHED", log[-3000:]
        innocent = service.wait_for(submitted(service, "innocent"))
        innocent_log = service.call("GET", f"/build/{innocent['id']}/log").text
        assert service.wait_for(neighbour)["status"] == "FINISHED"

    canaries = [site.environ[key] for key in ("CIC_REGISTRY_TOKEN", "CIC_SECRET_KEY", "CIC_CAPTCHA_SITE_KEY")]
    canaries.append((site.registry / "demo" / "neighbour" / "private").read_text())
    for name in ("post-install", "setup"):
        report = docker.read_file(status["image_id"], f"/found-by-{name}.json", 64 * 1024**2)
        assert report is not None, log[-3000:]
        found = json.loads(report)
        assert found["done"] == [], name
        assert len(found["refused"]) > 20
        assert "CIC_" not in "".join(text for path, text in found["texts"].items() if path.endswith("/environ"))
        assert set(found["writable"]) <= MAY_WRITE
        assert is_held(found["texts"]["/proc/self/status"])
        for canary in canaries:
            assert canary not in report and canary not in log
    whole = everything_in(status["image_id"])
    for canary in canaries:
        assert canary.encode() not in whole
    assert innocent["status"] == "FINISHED", innocent_log[-2000:]
    assert any(line.rstrip().endswith("POISONED:") for line in innocent_log.splitlines()), innocent_log[-2000:]


def is_held(status: str) -> bool:
    """Whether `/proc/self/status` tells of a process with a filter of system calls and no strong capability."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    capabilities = int(fields["CapEff"], 16)
    return fields["Seccomp"].strip() == "2" and not any(capabilities >> bit & 1 for bit in STRONG)
