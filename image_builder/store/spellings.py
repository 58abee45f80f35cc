"""Knows the two spellings of an image's name. Pure.

A version in a name is written `openmpi_4`, as the first service wrote it and its clients know it.
Images made between the two were called `openmpi-4`; their names stay valid, and mean the same image.
"""

from __future__ import annotations

import re

_SPEC = re.compile(
    r"(?P<rest>.+)_(?P<name>[a-z][a-z0-9]*(?:-[a-z][a-z0-9]*)*)"
    r"(?:[_-](?P<version>[0-9](?:[0-9.]*[0-9])?))?"
)
"""The last part of a name that ends in a plain spec. No package's word begins with a digit."""
_FILENAME = re.compile(r"(?P<name>.+?)(?P<end>-[0-9a-f]{8}_v_.+|_v_(?:(?!_v_).)+)\.sif")


def of_filename(filename: str) -> tuple[str, ...]:
    """Return how a SIF's name may be spelled: today's way first, then the earlier one."""
    match = _FILENAME.fullmatch(filename)
    if match is None:
        return (filename,)
    return tuple(f"{name}{match['end']}.sif" for name in _of_name(match["name"]))


def _of_name(name: str) -> tuple[str, ...]:
    gpu = _SPEC.fullmatch(name)
    mpi = _SPEC.fullmatch(gpu["rest"]) if gpu else None
    if gpu is None or mpi is None or not (mpi["version"] or gpu["version"]):
        return (name,)
    return tuple(
        f"{mpi['rest']}_{_spelled(mpi, joint)}_{_spelled(gpu, joint)}" for joint in ("_", "-")
    )


def _spelled(spec: re.Match[str], joint: str) -> str:
    return spec["name"] + (f"{joint}{spec['version']}" if spec["version"] else "")
