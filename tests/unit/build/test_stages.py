"""What a site lends to the steps of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.build.stages import MAX_CA_BUNDLE_BYTES, ca_bundle_text
from image_builder.errors import Misconfigured
from tests.support.planning import build_settings as site


def test_steps_trust_what_the_sites_bundle_holds(tmp_path: Path) -> None:
    bundle, link = tmp_path / "ca.pem", tmp_path / "link.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\n", "utf-8")
    link.symlink_to(bundle)  # as below /etc/ssl/certs
    assert ca_bundle_text(site(ca_bundle=bundle)) == bundle.read_text("utf-8")
    assert ca_bundle_text(site(ca_bundle=link)) == bundle.read_text("utf-8")
    assert ca_bundle_text(site(ca_bundle=None)) == ""


def test_comments_of_a_bundle_are_in_any_encoding(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes("# Główny urząd\n".encode("iso8859-2") + b"-----BEGIN CERTIFICATE-----\n")
    assert ca_bundle_text(site(ca_bundle=bundle)).endswith("\n-----BEGIN CERTIFICATE-----\n")
    bundle.write_bytes(b"")
    assert ca_bundle_text(site(ca_bundle=bundle)) == ""


@pytest.mark.parametrize("kind", ["nothing", "folder", "not text", "a key", "too large"])
def test_a_bundle_that_cannot_be_read_says_what_to_correct(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ca.pem"
    if kind == "folder":
        path.mkdir()
    elif kind == "not text":
        path.write_bytes(b"\x30\x82\xff\xfe")
    elif kind == "a key":
        path.write_text("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", "utf-8")
    elif kind == "too large":
        path.write_bytes(b"#" * (MAX_CA_BUNDLE_BYTES + 1))
    with pytest.raises(Misconfigured, match=r"ca\.pem cannot be used") as raised:
        ca_bundle_text(site(ca_bundle=path))
    assert "ca_bundle" in (raised.value.hint or "")
