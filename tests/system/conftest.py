"""Fixtures of the system tests; what they are made of is in `site.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder import docker
from tests.system.site import ImageRegistry, Site, make_site, running_image_registry

HELLO = {
    "eflows4hpc.yaml": "apt:\n  - bc\npip:\n  - six\n",
    "hello.py": "import six, subprocess\n"
    'print("hello", subprocess.check_output(["bc"], input=b"6*7\\n").decode().strip())\n',
}
"""A step that needs a Debian package and a Python one, and prints `hello 42`."""


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


def remove_images(site: Site) -> None:
    """Remove what the site's builds tagged."""
    remove_tags(site.environ["CIC_REGISTRY_IMAGES_PREFIX"])


def remove_tags(prefix: str) -> None:
    """Remove the images' names that begin so, also of images that a container uses."""
    with docker.daemon() as client:
        for image in client.images.list():
            for tag in image.tags:
                if tag.startswith(prefix):
                    client.images.remove(tag, force=True)
