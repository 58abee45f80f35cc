"""Fixtures of the system tests; what they are made of is in `tests/support`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from tests.support.daemon_images import remove_images
from tests.support.site import (
    BASE_IMAGE_ARM64,
    HELLO,
    PROJECT,
    ImageRegistry,
    Site,
    make_site,
    running_image_registry,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A fresh site with the step `demo/hello`; its images are removed at the end."""
    made = make_site(tmp_path)
    made.add_step("demo", "hello", HELLO)
    yield made
    remove_images(made)


@pytest.fixture
def image_registry(tmp_path: Path) -> Iterator[ImageRegistry]:
    with running_image_registry(tmp_path / "image-registry") as registry:
        yield registry


@pytest.fixture(scope="session")
def arm64_base() -> str:
    """The base image of an emulated platform, made when a test first asks for it."""
    program = [str(PROJECT / "scripts" / "base_image"), BASE_IMAGE_ARM64]
    with filelock.FileLock("/var/tmp/cic-test-base-arm64.lock"):
        subprocess.run([*program, "--arch", "arm64", "--unpacked"], check=True)
    return BASE_IMAGE_ARM64
