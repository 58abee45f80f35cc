"""Make a request of what a command line says. Pure, but for the files that it names."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from cic_client.errors import BadInput

MAX_REQUEST_BYTES = 1024**2


def request_of(asked: argparse.Namespace) -> Mapping[str, Any] | bytes:
    """Return the request that options or a file make. Raises `BadInput`."""
    has_options = bool(asked.packages or asked.machine or asked.name)
    if asked.request is not None:
        if has_options:
            raise BadInput(
                "Write packages, machine and name into the request, or leave the file out."
            )
        return read_bounded(asked.request, MAX_REQUEST_BYTES)
    path = getattr(asked, "path", None)
    if not asked.machine or bool(asked.packages) == (path is not None):
        raise BadInput(
            "Give a file with a request, or -m with -p or --path: cic build -p hdf5+mpi -m lumi-c"
        )
    fields: dict[str, Any] = {"machine": asked.machine}
    if asked.packages:
        fields["packages"] = asked.packages
    if name := asked.name or (path.resolve().name if path is not None else None):
        fields["name"] = name
    return fields


def read_bounded(path: str, max_bytes: int) -> bytes:
    """Return what a file holds, or standard input for `-`. Raises `BadInput`."""
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise BadInput(f"{path} is larger than {max_bytes} bytes.")
    return content
