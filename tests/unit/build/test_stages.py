"""What a site lends to the steps of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.build import stages
from image_builder.errors import Misconfigured
from image_builder.settings import BuildSettings


def site(ca_bundle: Path | None) -> BuildSettings:
    return BuildSettings(
        tmp_folder=Path("/tmp"),
        builder_home=Path("/opt"),
        base_image="base",
        ca_bundle=ca_bundle,
    )


def test_steps_trust_what_the_sites_bundle_holds(tmp_path: Path) -> None:
    bundle, link = tmp_path / "ca.pem", tmp_path / "link.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\n", "utf-8")
    link.symlink_to(bundle)  # as below /etc/ssl/certs
    assert stages.ca_bundle_text(site(bundle)) == bundle.read_text("utf-8")
    assert stages.ca_bundle_text(site(link)) == bundle.read_text("utf-8")
    assert stages.ca_bundle_text(site(None)) == ""


@pytest.mark.parametrize("kind", ["nothing", "folder", "not text", "too large"])
def test_a_bundle_that_cannot_be_read_says_what_to_correct(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ca.pem"
    if kind == "folder":
        path.mkdir()
    elif kind == "not text":
        path.write_bytes(b"\x30\x82\xff\xfe")
    elif kind == "too large":
        path.write_bytes(b"#" * (stages.MAX_CA_BUNDLE_BYTES + 1))
    with pytest.raises(Misconfigured, match=r"ca\.pem cannot be used") as raised:
        stages.ca_bundle_text(site(path))
    assert "ca_bundle" in (raised.value.hint or "")
