"""A step that writes without end is stopped before Docker's disk is full, and no other one is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.site import MACHINE, make_site, running_service
from tests.system.own_docker import own_docker

pytestmark = pytest.mark.system

DISK_BYTES = 4 * 10**9
MIN_FREE_BYTES = 1_600_000_000
"""A build needs so much to begin, and is ended when half of it is left."""
FILL = "#!/bin/sh\ncat /dev/zero >/var/filled\n"
WAIT = """#!/bin/sh
# Ends when the disk was nearly full, and has room again.
free_kb() { df -P / | awk 'NR == 2 { print $4 }'; }
until [ "$(free_kb)" -lt 1100000 ]; do sleep 0.2; done
until [ "$(free_kb)" -gt 1700000 ]; do sleep 0.2; done
"""


def test_the_build_that_fills_the_disk_is_ended_and_no_other(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    for step, script in (("fill", FILL), ("wait", WAIT)):
        site.add_step("demo", step, {"eflows4hpc.yaml": "apt: []\n", "post_inst.sh": script})
    asked = {
        "machine": MACHINE | {"container_engine": "docker"},
        "workflow": "demo",
        "push": False,
    }
    with own_docker(disk_bytes=DISK_BYTES) as docker:
        site = site.with_environ(
            DOCKER_HOST=f"unix://{docker.socket}",
            BUILDX_CONFIG=str(tmp_path / "buildx"),
            CIC_BUILD_MIN_FREE_BYTES=str(MIN_FREE_BYTES),
            CIC_BUILD_MAX_CONCURRENT_BUILDS="3",
            CIC_BUILD_BUILD_TIMEOUT_S="240",
        )
        with running_service(site) as service:
            ids = {}
            for step in ("wait", "fill"):
                answer = service.call("POST", "/build/", json={**asked, "step_id": step})
                assert answer.status_code == 200, answer.text
                ids[step] = answer.json()["id"]
            ended = {step: service.wait_for(build_id) for step, build_id in ids.items()}
            log = service.call("GET", f"/build/{ids['fill']}/log").text
        assert shutil.disk_usage(docker.root / "data").free > MIN_FREE_BYTES // 4
    assert ended["fill"]["error_code"] == "NO_SPACE", ended
    assert "before it is full" in ended["fill"]["message"], log[-2000:]
    assert ended["wait"]["status"] == "FINISHED", ended
