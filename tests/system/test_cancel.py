"""A cancel at each stage of a build: its processes go, here and in the daemon, and nothing is left.

How soon, `benchmarks/cancelling.py` measures.

At each stage something sleeps for a number of seconds that nobody else sleeps for, so that it can
be found among all processes of the machine, also in containers.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from image_builder.sif import docker_export
from tests.support.daemon_images import remove_images
from tests.support.processes import command_lines, sleepers
from tests.support.silent_registry import silent_registry
from tests.support.site import MACHINE, Service, Site, make_site, running_service
from tests.system.test_nothing_lost import until
from tests.system.test_spack_standin import standin_base

pytestmark = pytest.mark.system
DOCKER = MACHINE | {"container_engine": "docker"}
FAST = {"eflows4hpc.yaml": "apt: []\n"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with standin_base(tmp_path_factory.mktemp("base")) as name:
        yield name


@pytest.fixture
def sleep_s() -> str:
    """So many seconds, in which nobody waits for the end."""
    return f"600.{random.SystemRandom().randrange(10**9):09}"


@pytest.fixture
def cancel_site(base: str, tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path).with_environ(
        CIC_BUILD_BASE_IMAGE=base, CIC_BUILD_MAX_CONCURRENT_BUILDS="1"
    )
    made.add_step("demo", "next", FAST)
    yield made
    remove_images(made)


def submit(service: Service, step: str, **more: Any) -> str:
    answer = service.call(
        "POST",
        "/build/",
        json={"machine": DOCKER, "workflow": "demo", "step_id": step, "push": False} | more,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def cancel(service: Service, build_id: str, is_gone: Callable[[], bool]) -> None:
    """Cancel, and see that all of it goes, and the next build is as if nothing had been."""
    answer = service.call("POST", f"/build/{build_id}/cancel").json()
    assert (answer["status"], answer["error_code"]) == ("FAILED", "CANCELLED")
    until(is_gone)
    builds = service.site.tmp_folder / "builds"
    until(lambda: not builds.exists() or not list(builds.iterdir()))
    incoming = service.site.tmp_folder / "store" / "incoming"
    until(lambda: not incoming.exists() or not list(incoming.iterdir()))
    assert service.wait_for(submit(service, "next"))["status"] == "FINISHED"
    assert service.call("GET", f"/build/{build_id}").json()["error_code"] == "CANCELLED"


@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("concretize", {"eflows4hpc.yaml": "spack:\n  specs:\n  - puzzling@{sleep_s}\n"}),
        ("install", {"eflows4hpc.yaml": "spack:\n  specs:\n  - slow@{sleep_s}\n"}),
        ("post-install", FAST | {"post_inst.sh": "#!/bin/sh\nsleep {sleep_s}\n"}),
        ("smoke", {"eflows4hpc.yaml": "smoke: [sleep, '{sleep_s}']\n"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inside_a_container(
    cancel_site: Site, sleep_s: str, stage: str, files: dict[str, str]
) -> None:
    cancel_site.add_step(
        "demo", "slow", {name: text.replace("{sleep_s}", sleep_s) for name, text in files.items()}
    )
    with running_service(cancel_site) as service:
        build_id = submit(service, "slow")
        until(lambda: sleepers(sleep_s))
        cancel(service, build_id, lambda: not sleepers(sleep_s))


def test_in_the_queue(cancel_site: Site, sleep_s: str) -> None:
    cancel_site.add_step("demo", "slow", FAST | {"post_inst.sh": f"#!/bin/sh\nsleep {sleep_s}\n"})
    cancel_site.add_step("demo", "waiting", FAST)
    with running_service(cancel_site) as service:
        slow = submit(service, "slow")
        until(lambda: sleepers(sleep_s))
        waiting = submit(service, "waiting")
        answer = service.call("POST", f"/build/{waiting}/cancel").json()
        assert (answer["status"], answer["error_code"]) == ("FAILED", "CANCELLED")
        assert sleepers(sleep_s), "the other one goes on"
        cancel(service, slow, lambda: not sleepers(sleep_s))
        assert service.call("GET", f"/build/{waiting}").json()["started_at"] is None


def test_while_pushing(cancel_site: Site) -> None:
    cancel_site.add_step("demo", "slow", FAST)
    with (
        silent_registry() as (host, reached),
        running_service(with_registry(cancel_site, host)) as service,
    ):
        build_id = submit(service, "slow", push=True)
        assert reached.wait(120)

        def pushes() -> bool:
            return any(
                b"push" in arguments and host.encode() in b" ".join(arguments)
                for arguments in command_lines()
            )

        until(pushes)
        cancel(service, build_id, lambda: not pushes())
        remove_images(service.site)


def with_registry(site: Site, host: str) -> Site:
    return site.with_environ(CIC_REGISTRY_URL=host, CIC_REGISTRY_IMAGES_PREFIX=f"{host}/group/")


def exporting(step: str) -> list[str]:
    """Containers through which an image is read, which may have no name yet."""
    command = ["docker", "ps", "--all", "--quiet", f"--filter=label=cic.step={step}"]
    command += [f"--filter=label={docker_export.REPOSITORY}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_while_converting(cancel_site: Site, sleep_s: str, tmp_path: Path) -> None:
    cancel_site.add_step("demo", "slow", FAST)
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "tar2sqfs").write_text(
        f'#!/bin/sh\ncase $1 in --help|--version) exec {shutil.which("tar2sqfs")} "$@";; '
        f"esac\nsleep {sleep_s}\n"
    )
    (shims / "tar2sqfs").chmod(0o755)
    with running_service(
        cancel_site.with_environ(PATH=f"{shims}:{cancel_site.environ['PATH']}")
    ) as service:
        build_id = submit(service, "slow", machine=MACHINE)
        until(lambda: sleepers(sleep_s))
        until(lambda: exporting("slow"))  # the container that is exported
        cancel(service, build_id, lambda: not sleepers(sleep_s) and not exporting("slow"))
