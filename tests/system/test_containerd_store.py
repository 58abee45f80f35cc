"""A Docker whose images lie in containerd's store, as new installations of Docker 29 have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.site import MACHINE, ImageRegistry, Site, own_tag, running_service
from tests.system.own_docker import own_docker
from tests.system.test_remote_builder import cable, registry_there

pytestmark = [
    pytest.mark.system,
    pytest.mark.endurance,
]  # some minutes, most of them for the daemon

REQUEST = {"machine": MACHINE, "workflow": "demo", "step_id": "plain", "push": True}


def test_images_are_built_pushed_found_again_and_converted(
    site: Site, image_registry: ImageRegistry, tmp_path: Path
) -> None:
    site.add_step("demo", "plain", {"eflows4hpc.yaml": "apt: []\n", "hello.txt": "hello\n"})
    config = tmp_path / "daemon.json"
    config.write_text(json.dumps({"features": {"containerd-snapshotter": True}}))
    with (
        own_docker("--config-file", str(config)) as docker,
        cable(docker.host, 0) as here,
        registry_there(docker.host, here, image_registry.host),
    ):
        configured = site.with_environ(
            **image_registry.environ,
            DOCKER_HOST=f"unix://{docker.socket}",
            BUILDX_CONFIG=str(tmp_path / "buildx"),
        )
        with running_service(configured) as service:
            built = service.build(REQUEST)
            again = service.build(REQUEST)
            forced = service.build({**REQUEST, "force": True})
            logs = [
                service.call("GET", f"/build/{build['id']}/log").text
                for build in (built, again, forced)
            ]
    assert [build["status"] for build in (built, again, forced)] == ["FINISHED"] * 3, logs
    assert [line for log in logs for line in log.splitlines() if "Warning: " in line] == []
    assert "exists already" in logs[1] and again["pushed_digest"] == built["pushed_digest"]
    assert built["sha256"] == again["sha256"]
    assert image_registry.tags("group/demo_plain_x86_64_nompi_nogpu") == [own_tag(built), "latest"]
