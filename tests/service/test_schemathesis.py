"""schemathesis against the running service: it makes requests from the served description, right
and wrong ones, and holds every answer against it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder.store.folder import ImageStore
from image_builder.store.record import ImageRecord
from tests.support.site import PASSWORD, USER, Service, add_user, make_site, running_service

SEED = 20261123
EXAMPLES = 25
OTHER_USER = "bob"
CONFIG = """
[checks]
positive_data_acceptance.enabled = false  # no schema says which workflows exist, and which targets a platform has
ignored_auth.enabled = false  # test_access tries every call; after many wrong log-ins comes 429, and not 401

[[operations]]
include-operation-id = "ready"
checks.not_a_server_error.enabled = false  # 503 is its way to say that something is missing

[[operations]]
include-operation-id = "plan"
checks.allow_header_conformance.enabled = false  # its path is also that of a build called "plan",
checks.unsupported_method.enabled = false        # which is not found

[cache]
enabled = false
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that accepts what the description's examples name; its builds fail at once, for
    want of disk.
    """
    site = make_site(tmp_path_factory.mktemp("site")).with_environ(
        CIC_BUILD_MIN_FREE_BYTES=str(10**18), CIC_REPOSITORIES_MIRROR_MAX_AGE_S="3600"
    )
    site.add_step("minimal_workflow", "wordcount", {"eflows4hpc.yaml": "apt:\n  - bc\n"})
    images = ImageStore(site.tmp_folder / "store")
    with images.temporary_path() as temporary:
        temporary.write_bytes(b"SIF" * 1000)
        images.publish(
            temporary,
            ImageRecord(
                identity="a" * 64, image_id="a:1", platform="linux/amd64", filename="a.sif"
            ),
        )
    with running_service(site) as started:
        add_user(site, OTHER_USER, PASSWORD)
        yield started


@pytest.mark.parametrize(("user", "seed"), [(USER, SEED), (OTHER_USER, SEED + 1)])
def test_every_answer_is_as_described(
    service: Service, tmp_path: Path, user: str, seed: int
) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG, "utf-8")
    ended = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "--config-file",
            str(config),
            "run",
            f"{service.url}/image_creation/openapi.json",
            "--auth",
            f"{user}:{PASSWORD}",
            "--seed",
            str(seed),
            "--max-examples",
            str(EXAMPLES),
            "--no-color",
            "--suppress-health-check",
            "all",
        ],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    tried = re.search(r"^\s*(\d+) generated", ended.stdout, re.MULTILINE)
    assert tried, ended.stdout[-3000:]
    assert int(tried[1]) > 400
    assert "Traceback" not in service.log.read_text("utf-8", "replace")
