"""Writes an image as an OCI layout of one layer, for Singularity's own `build` to unpack.

`build` writes into the files that it unpacked and follows links there, out of them and onto this
machine. So the layer is the exported image after the check of `tar_filter.py`, which lets no link
through where Singularity writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from image_builder.host.cancellation import CancelToken
from image_builder.host.files import sha256_of
from image_builder.host.process import LineSink
from image_builder.settings import BuildSettings
from image_builder.sif import docker_export, streaming
from image_builder.sif.docker_export import ExportedImage

_TYPE = "application/vnd.oci.image"


def write(
    image: str,
    folder: Path,
    *,
    scratch: Path,
    settings: BuildSettings,
    on_line: LineSink,
    time_s: int,
    cancel: CancelToken | None = None,
) -> None:
    """Write an image in the daemon to `folder`, which is created.

    Raises `UnsuitableImage` for one that would lead Singularity to files outside, `NotStreamable`
    when Docker does not export it, else as `streaming.stream` does.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = blobs / "layer"
    with docker_export.exported(image) as exported:
        streaming.write_layer(
            exported,
            layer,
            scratch=scratch,
            settings=settings,
            on_line=on_line,
            time_s=time_s,
            cancel=cancel,
        )
    with layer.open("rb") as file:
        digest = sha256_of(file)
    described = _descriptor("layer.v1.tar", digest, layer.stat().st_size)
    layer.rename(blobs / digest)
    _write_index(folder, exported, described)


def _write_index(folder: Path, image: ExportedImage, layer: dict[str, Any]) -> None:
    config = _add(
        folder,
        "config.v1+json",
        {
            "architecture": image.architecture,
            "os": "linux",
            "config": dict(image.config),
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        },
    )
    manifest = _add(
        folder, "manifest.v1+json", {"schemaVersion": 2, "config": config, "layers": [layer]}
    )
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def _add(folder: Path, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Write a document into the layout, and return the descriptor that names it there."""
    written = folder / "document"
    written.write_text(json.dumps(content), "utf-8")
    with written.open("rb") as file:
        digest = sha256_of(file)
    described = _descriptor(kind, digest, written.stat().st_size)
    written.rename(folder / "blobs" / "sha256" / digest)
    return described


def _descriptor(kind: str, digest: str, size_bytes: int) -> dict[str, Any]:
    return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": size_bytes}
