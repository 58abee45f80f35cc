"""Knows which GPU drivers run what a GPU runtime made. Pure.

The facts are in `data/drivers.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from image_builder.data import facts_of


def facts() -> Mapping[str, Any]:
    """Return the data file: `cuda`, `cuda_family`, `rocm_releases`, `rocm_distance`."""
    return facts_of("drivers")


def toolkit_driver(cuda: str) -> str | None:
    """Return the driver that is released with a CUDA release (`12.8.1`), or None if not known."""
    driver: str | None = facts()["cuda"].get(_release(cuda))
    return driver


def minimal_driver(cuda: str) -> str | None:
    """Return the oldest driver that runs programs of a CUDA release, or None if not known.

    It is that of the oldest release of its family, and before CUDA 11 that of the release itself.
    """
    family: str | None = facts()["cuda_family"].get(cuda.split(".")[0])
    return family or toolkit_driver(cuda)


def rocm_fits(image: str, host: str) -> bool | None:
    """Return whether ROCm `image` is supported with the driver of ROCm `host`; None: not known.

    `image` is the release of the user space.
    """
    releases: list[str] = facts()["rocm_releases"]
    if _release(image) not in releases or _release(host) not in releases:
        return None
    distance = abs(releases.index(_release(image)) - releases.index(_release(host)))
    return bool(distance <= facts()["rocm_distance"])


def _release(text: str) -> str:
    return ".".join(text.split(".")[:2])
