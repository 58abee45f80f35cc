"""Remove images that tests and measurements leave in Docker, by the beginnings of their names."""

from __future__ import annotations

from image_builder.docker import daemon
from tests.support.site import Site


def remove_images(site: Site) -> None:
    """Remove what the site's builds tagged."""
    remove_tags(site.environ["CIC_REGISTRY_IMAGES_PREFIX"])


def remove_tags(prefix: str) -> None:
    """Remove the images' names that begin so, also of images that a container uses.

    `client.images.list` would look at each image, of which other tests remove some meanwhile.
    """
    with daemon.daemon() as client:
        for image in client.api.images():
            for tag in image.get("RepoTags") or ():
                if tag.startswith(prefix):
                    client.images.remove(tag, force=True)
