"""Images whose own programs never end, print without an end, or look like others: they hold nothing.

Every look at an image is a container that this service ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from image_builder.audit import exported_files
from image_builder.audit.binaries import audit_files
from image_builder.audit.exported_files import Sampling
from image_builder.audit.lock_audit import Verdict
from image_builder.docker import container, daemon
from image_builder.docker.base_image import facts_or_guess
from image_builder.docker.daemon import BaseImageUnavailable
from image_builder.errors import Cancelled
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Runner
from image_builder.host.process import run as run_command
from image_builder.host.text_cache import TextCache
from image_builder.recipe.stages import INSTALL_TREES
from tests.support.daemon_images import remove_images
from tests.support.memory import steady_memory
from tests.support.site import (
    BASE_IMAGE,
    MACHINE,
    PROJECT,
    Service,
    Site,
    make_site,
    running_service,
)

pytestmark = pytest.mark.system

HANGS = "#!/usr/bin/python3\nimport signal, time\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1)\n"
FLOODS = "#!/usr/bin/python3\nimport os\nwhile True: os.write(1, b'x' * 65536)\n"
ENDS = {"hangs": HANGS, "floods": FLOODS}


@pytest.fixture(params=sorted(ENDS))
def hostile_image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An image whose /bin/sh does not do what a shell does."""
    name = f"cic-test-hostile:{secrets.token_hex(8)}"
    (tmp_path / "sh").write_text(ENDS[request.param])
    (tmp_path / "sh").chmod(0o755)
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nCOPY sh /bin/sh\n")
    build = ["docker", "buildx", "build", "--quiet", "--load", f"--tag={name}", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


def containers_of(image: str) -> list[str]:
    listed = subprocess.run(
        ["docker", "ps", "--all", "--quiet", f"--filter=ancestor={image}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return listed.stdout.split()


def wait_for_container(image: str) -> None:
    for _ in range(600):
        if containers_of(image):
            return
        time.sleep(0.1)
    raise AssertionError("no container was started")


def test_a_shell_that_does_not_end_is_ended(hostile_image: str) -> None:
    with pytest.raises(BaseImageUnavailable, match="does not run here"):
        container.run_probe(hostile_image, "linux/amd64", ("/bin/sh", "-c", ":"), timeout_s=3)
    assert containers_of(hostile_image) == []


def test_a_cancel_ends_the_look_at_an_image(hostile_image: str) -> None:
    cancel = CancelToken()

    def cancel_when_it_runs() -> None:
        wait_for_container(hostile_image)
        cancel.cancel()

    thread = threading.Thread(target=cancel_when_it_runs)
    thread.start()
    with pytest.raises(Cancelled):
        container.run_probe(
            hostile_image,
            "linux/amd64",
            ("/bin/sh", "-c", ":"),
            max_output_bytes=1024**4,
            cancel=cancel,
        )
    thread.join()
    assert containers_of(hostile_image) == []


def test_what_a_killed_process_left_is_swept_and_nothing_of_a_living_one(
    hostile_image: str,
) -> None:
    look = (
        "from image_builder.docker import container; container.run_probe("
        f"{hostile_image!r}, 'linux/amd64', ('/bin/sh', '-c', ':'), max_output_bytes=1024**4)"
    )
    process = subprocess.Popen([sys.executable, "-c", look], cwd=PROJECT, stderr=subprocess.DEVNULL)
    wait_for_container(hostile_image)
    container.sweep()
    assert containers_of(hostile_image), "its process is alive"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    container.sweep()
    assert containers_of(hostile_image) == []


STARTS_NOT = {
    "missing": None,
    "no-program": (b"no program at all", 0o755),
    "not-executable": (b"#!/bin/sh\n", 0o644),
    "no-interpreter": (b"#!/nowhere/sh\n", 0o755),
}


@pytest.fixture(params=sorted(STARTS_NOT))
def shell_less_image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An image whose /bin/sh does not start."""
    name = f"cic-test-no-shell:{secrets.token_hex(8)}"
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        if (shell := STARTS_NOT[request.param]) is not None:
            member = tarfile.TarInfo("bin/sh")
            member.size, member.mode = len(shell[0]), shell[1]
            tar.addfile(member, io.BytesIO(shell[0]))
    subprocess.run(["docker", "import", str(archive), name], check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


def test_a_shell_that_does_not_start_leaves_no_container(
    shell_less_image: str, tmp_path: Path
) -> None:
    """Docker makes the container before it finds that its program does not start."""
    with pytest.raises(BaseImageUnavailable, match="does not run here"):
        container.run_probe(shell_less_image, "linux/amd64", ("/bin/sh", "-c", ":"))
    facts, warning = facts_or_guess(shell_less_image, None, "linux/amd64", tmp_path / "cache")
    assert facts.compilers == {} and warning
    assert containers_of(shell_less_image) == []


LIES = r"""
FROM %s
RUN mkdir -p /opt/spack/opt/spack/pkg/bin && cp /bin/true /opt/spack/opt/spack/pkg/bin/honest && \
    printf '\177ELF\002\001\001\000\000\000\000\000\000\000\000\000\002\000\267\000' \
        >/opt/spack/opt/spack/pkg/bin/foreign && head -c 100 /dev/zero >>/opt/spack/opt/spack/pkg/bin/foreign && \
    ln -s /etc /opt/spack/opt/spack/pkg/link && mkfifo /opt/spack/opt/spack/pkg/fifo && \
    rm -f /usr/bin/python3 && printf '#!/bin/sh\necho forged\n' >/usr/bin/python3 && chmod 755 /usr/bin/python3 && \
    cp /usr/bin/python3 /usr/bin/objdump
"""
"""An image that says nothing of a program for another machine, if its own programs are asked."""


def listed(
    image: str, folder: Path, base: str = BASE_IMAGE, *, runner: Runner = run_command
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    sampling = Sampling(
        known=TextCache(folder.parent / "known", ".json", most=10),
        known_for=base,
        image=base,
        recipe_version="1",
        folder=folder / "samples",
        cpus=1,
        cgroup=None,
        runner=runner,
    )
    found = exported_files.look(image, INSTALL_TREES, "linux/amd64", sampling, CancelToken())
    assert list(folder.iterdir()) == []
    return dict(json.loads(found.inventory))


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a container was started")


def test_an_image_is_looked_at_from_outside(tmp_path: Path) -> None:
    name = f"cic-test-hostile:{secrets.token_hex(8)}"
    build = ["docker", "buildx", "build", "--quiet", "--load", f"--tag={name}", "-"]
    subprocess.run(build, check=True, capture_output=True, input=(LIES % BASE_IMAGE).encode())
    try:
        found = listed(name, tmp_path / "look")
        without_python = listed(name, tmp_path / "look", base=name)
        again = listed(name, tmp_path / "look", runner=never)
    finally:
        subprocess.run(["docker", "rmi", name], check=True, capture_output=True)
    folder = "/opt/spack/opt/spack/pkg/bin"
    assert [path for path, _ in found["files"]] == [f"{folder}/foreign", f"{folder}/honest"]
    assert set(found["instructions"]) <= {f"{folder}/foreign", f"{folder}/honest"}
    assert without_python["files"] == found["files"] and without_python["instructions"] == {}
    assert again == found and found["instructions"], "the same files are not looked at again"
    verdict = audit_files(
        Verdict(checks=(), problems=()), json.dumps(found), platform="linux/amd64", target="x86_64"
    )
    assert [problem.node for problem in verdict.problems] == [f"{folder}/foreign"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site with one slot."""
    made = make_site(tmp_path / "site").with_environ(CIC_BUILD_MAX_CONCURRENT_BUILDS="1")
    for name, script in ENDS.items():
        made.add_step(
            "demo",
            name,
            {
                "eflows4hpc.yaml": "smoke: [echo, fine]\n",
                "sh": script,
                # New each time, or BuildKit would remember the step from an earlier run.
                "post_inst.sh": f"# {secrets.token_hex()}\nchmod 755 sh && cp sh /x && mv /x /bin/sh\n",
            },
        )
    made.add_step("demo", "innocent", {"eflows4hpc.yaml": "", "text": secrets.token_hex()})
    yield made
    remove_images(made)


def submitted(service: Service, step: str, *, force: bool = False) -> str:
    asked = {
        "machine": MACHINE | {"container_engine": "docker"},
        "workflow": "demo",
        "step_id": step,
        "push": False,
        "force": force,
    }
    return service.submit(asked)


def test_a_shell_that_never_ends_gives_its_slot_back_when_cancelled(site: Site) -> None:
    with running_service(site) as service:
        hostile = submitted(service, "hangs")
        for _ in range(1200):
            if looks_of(processes_of(service)):
                break
            time.sleep(0.1)
        processes = processes_of(service)
        assert looks_of(processes), service.call("GET", f"/build/{hostile}/log").text[-2000:]
        waiting = submitted(service, "innocent")
        assert service.call("POST", f"/build/{hostile}/cancel").status_code == 200
        assert service.wait_for(waiting)["status"] == "FINISHED"
        assert service.call("GET", f"/build/{hostile}").json()["error_code"] == "CANCELLED"
    assert not looks_of(processes)


def test_a_shell_that_prints_without_an_end_fills_nothing(site: Site) -> None:
    with running_service(site) as service:
        assert service.wait_for(submitted(service, "innocent"))["status"] == "FINISHED"
        processes = processes_of(service)
        with steady_memory(service):
            status = service.wait_for(submitted(service, "floods"))
            log = service.call("GET", f"/build/{status['id']}/log").text
        again = service.wait_for(submitted(service, "innocent", force=True))
        assert again["status"] == "FINISHED"
    assert status["status"] == "FINISHED" and "The smoke command was not run" in log
    assert "printed more than" in log and len(log) < 1024**2
    assert processes and not looks_of(processes)


def processes_of(service: Service) -> set[str]:
    """The ids of the processes that the service started, or is; each has its settings."""
    mark = f"\0CIC_REGISTRY_IMAGES_PREFIX={service.site.environ['CIC_REGISTRY_IMAGES_PREFIX']}\0"
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if mark.encode() in b"\0" + (process / "environ").read_bytes():
                found.add(process.name)
    return found


def looks_of(processes: set[str]) -> list[str]:
    """The containers that these processes look at images with; other services here have theirs."""
    looks = daemon.labelled_containers(container.LABEL)
    return [name for name, tag in looks if tag.split("-")[2] in processes]
