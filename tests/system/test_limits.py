"""Each limit of time and size ends a real build with its own code, and leaves nothing of it behind."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder.errors import CicError
from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import build_image
from image_builder.request.parsing import parse_request
from tests.support.daemon_images import remove_images
from tests.support.processes import sleepers
from tests.support.recording import Heard
from tests.support.silent_registry import silent_registry
from tests.support.site import MACHINE, Site, make_site

pytestmark = pytest.mark.system
SLEEP_S = f"600.{secrets.randbelow(10**9):09}"
DOCKER = MACHINE | {"container_engine": "docker"}
PLAIN = {"eflows4hpc.yaml": "apt: []\n"}


def script(text: str) -> dict[str, str]:
    return PLAIN | {"post_inst.sh": f"#!/bin/sh\n# {secrets.token_hex()}\n{text}\n"}


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Site]:
    site = make_site(tmp_path)
    yield site
    remove_images(site)


def code_of(
    site: Site, machine: dict[str, str], files: dict[str, str], *, push: bool = False
) -> str:
    """The code with which a build ends that runs into a limit."""
    site.add_step("demo", "slow", files)
    request = parse_request(
        {"machine": machine, "workflow": "demo", "step_id": "slow", "push": push}
    )
    with pytest.raises(CicError) as caught:
        build_image(
            request,
            settings=site.settings.library,
            workspace=site.root / "workspace",
            observer=Heard(),
            cancel=CancelToken(),
        )
    assert not (site.root / "workspace").exists() and sleepers(SLEEP_S) == []
    return caught.value.code.value


@pytest.mark.parametrize(
    ("settings", "text", "code"),
    [
        ({"CIC_BUILD_TOTAL_TIMEOUT_S": "6"}, f"sleep {SLEEP_S}", "TOTAL_TIMEOUT"),
        ({"CIC_BUILD_BUILD_TIMEOUT_S": "6"}, f"sleep {SLEEP_S}", "BUILD_TIMEOUT"),
        ({"CIC_BUILD_QUIET_TIMEOUT_S": "4"}, f"sleep {SLEEP_S}", "QUIET_TIMEOUT"),
        ({"CIC_BUILD_LOG_MAX_BYTES": "20000"}, f"yes; sleep {SLEEP_S}", "LOG_TOO_LARGE"),
        ({"CIC_BUILD_MAX_IMAGE_BYTES": "1000000"}, "true", "NO_SPACE"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isupper() else "",
)
def test_of_a_build(limited: Site, settings: dict[str, str], text: str, code: str) -> None:
    assert code_of(limited.with_environ(**settings), DOCKER, script(text)) == code


def test_of_a_push(limited: Site) -> None:
    with silent_registry() as (host, _):
        site = limited.with_environ(
            CIC_BUILD_PUSH_TIMEOUT_S="3",
            CIC_REGISTRY_URL=host,
            CIC_REGISTRY_IMAGES_PREFIX=f"{host}/group/",
        )
        try:
            assert code_of(site, DOCKER, PLAIN, push=True) == "PUSH_TIMEOUT"
        finally:
            remove_images(site)


def test_of_a_conversion(limited: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shims").mkdir()
    program = tmp_path / "shims" / "tar2sqfs"
    program.write_text(f"#!/bin/sh\nsleep {SLEEP_S}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{limited.environ['PATH']}")
    assert (
        code_of(limited.with_environ(CIC_BUILD_CONVERT_TIMEOUT_S="6"), MACHINE, PLAIN)
        == "CONVERSION_TIMEOUT"
    )
