"""Make small bundles, whole ones and broken ones, without Docker."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image_builder.bundle import archive, gather
from image_builder.bundle.manifest import (
    FORMAT,
    IMAGES,
    MEDIA_TYPE,
    STEP,
    Image,
    Manifest,
    Trees,
)
from image_builder.bundle.manifest import Step as PinnedStep
from image_builder.host.cancellation import CancelToken
from image_builder.plan.identity import identity_of
from image_builder.proof.keys import Signer
from image_builder.recipe.stages import LATEST_RECIPE
from image_builder.request.build_request import BuildRequest
from image_builder.sources.local_step import local_step

CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
LAYER = b"a layer"
DIGEST = f"sha256:{'d' * 64}"


def write_parts(root: Path, request: BuildRequest, extra: Mapping[str, bytes] = {}) -> Manifest:
    """Write the files of a bundle below `root/parts`, and return its manifest."""
    parts, step = root / "parts", root / "step"
    for folder in (parts / IMAGES, step):
        folder.mkdir(parents=True)
    (step / "eflows4hpc.yaml").write_text("apt: [bc]\n")
    gather.pack(step, parts / STEP, CancelToken())
    blobs = {}
    for content in (CONFIG, LAYER):
        (parts / "blob").write_bytes(content)
        blobs[content] = archive.file_of("blob", parts / "blob").sha256
        (parts / "blob").rename(parts / IMAGES / blobs[content])
    for path, content in extra.items():
        (parts / path).parent.mkdir(parents=True, exist_ok=True)
        (parts / path).write_bytes(content)
    paths = sorted(str(path.relative_to(parts)) for path in parts.rglob("*") if path.is_file())
    tree = local_step(step, workflow=request.workflow_name, step_id=request.step_name).tree
    return Manifest(
        format=FORMAT,
        recipe=LATEST_RECIPE,
        platform=request.machine.platform,
        identity=identity_of(
            request,
            step_tree=tree,
            base_digest=DIGEST,
            packages_tree=None,
            config_tree=None,
            recipe_version=LATEST_RECIPE,
            branch_commits={},
        ),
        request=request.image_fields(),
        step=PinnedStep(tree=tree, commit="c" * 40, time_s=1_700_000_000),
        catalogue=Trees(),
        base=Image(
            repository="registry.test/base",
            digest=DIGEST,
            config=blobs[CONFIG],
            layers=[blobs[LAYER]],
        ),
        branch_commits={},
        files=[archive.file_of(path, parts / path) for path in paths],
    )


def written(root: Path, manifest: Manifest, signer: Signer | None = None) -> bytes:
    """Return the archive of a manifest whose files are below `root/parts`."""
    output = io.BytesIO()
    archive.write(
        output,
        manifest,
        {file.path: root / "parts" / file.path for file in manifest.files},
        signature=signer.envelope(MEDIA_TYPE, manifest.text()) if signer else None,
        cancel=CancelToken(),
    )
    return output.getvalue()


def changed(manifest: Manifest, **fields: Any) -> Manifest:
    """Return a manifest with other fields, which is checked as one that is read."""
    return Manifest.model_validate({**manifest.model_dump(), **fields})
