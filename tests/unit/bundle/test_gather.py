"""What a bundle takes of this machine: folders that stay what they are, and what it cannot hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from image_builder.bundle.gather import pack, require_no_addresses
from image_builder.errors import UserError
from image_builder.host.cancellation import CancelToken
from image_builder.sources.git.trees import Limits
from image_builder.sources.local_step import local_step
from image_builder.sources.uploads import keep_upload


def test_a_packed_folder_keeps_its_tree(tmp_path: Path) -> None:
    """So a step has the identity on the other side that it has here."""
    step = tmp_path / "step"
    (step / "deep" / ("n" * 120)).mkdir(parents=True)
    (step / "eflows4hpc.yaml").write_text("apt: [bc]\n")
    (step / "deep" / ("n" * 120) / "daten-ü.txt").write_text("x")
    (step / "run.sh").write_text("#!/bin/sh\n")
    (step / "run.sh").chmod(0o755)
    (step / "link").symlink_to("deep")
    pack(step, tmp_path / "one.tar", CancelToken())
    os.utime(step / "run.sh", (1, 1))
    pack(step, tmp_path / "two.tar", CancelToken())
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with (tmp_path / "one.tar").open("rb") as packed:
        kept = keep_upload(packed, tmp_path / "kept", Limits())
    assert kept.tree == local_step(step, workflow="w", step_id="s").tree


@pytest.mark.parametrize(
    "line",
    [
        "git+https://git.example.org/x.git",
        "solver @ git+ssh://git@git.example.org/x.git@v1",
        "solver@https://example.org/solver-1.0.tar.gz",
        "https://example.org/solver-1.0-py3-none-any.whl",
    ],
)
def test_requirements_from_an_address_are_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"requirements\.txt, line 2: .* comes from an address"):
        require_no_addresses(f"six\n{line}\n")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "six\n",
        "six==1.17 --hash=sha256:" + "0" * 64 + "\n",
        "--index-url https://index.example.org/simple\nsix\n",
        "# see https://example.org\n./local\n-e .\n",
        "six ; python_version > '3'  # git+https://x\n",
    ],
)
def test_other_requirements_are_taken(text: str | None) -> None:
    require_no_addresses(text)
