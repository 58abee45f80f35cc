"""Packages that were built before their bundle was made are installed from it by a real Spack."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_builder.proof.keys import read_signer
from tests.support.daemon_images import remove_images
from tests.support.signing import make_key
from tests.support.site import MACHINE
from tests.support.spack_site import SPACK_ROOT, Told, environment, make_spack_site
from tests.system.own_docker import own_docker
from tests.system.test_bundle import ask, build_alone, interfaces, make_bundle, printed, secluded

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        SPACK_ROOT is None,
        reason="CIC_SPACK_ROOT IS NOT SET: NOTHING IS TESTED WITH A REAL SPACK",
    ),
]


def test_a_bundle_brings_built_packages(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key.pem", "ed25519")
    public = tmp_path / "public.pem"
    public.write_text(read_signer(key).public_pem)
    site = make_spack_site(tmp_path / "site").with_environ(CIC_PROOF_KEY=str(key))
    site.add_step("spack", "compressed", environment(["lz4@1.9.4", "bzip2@1.0.8"]))
    machine = {**MACHINE, "architecture": "haswell"}
    asked = ask(site, machine=machine, workflow="spack", step_id="compressed")
    bundle = make_bundle(asked, more=["--built"])
    remove_images(site)
    with own_docker(is_alone=True) as alone:
        ended = build_alone(
            alone, secluded(tmp_path / "offline", asked), asked, bundle, "--keys", str(public)
        )
        sent = {name: count for name, count in interfaces(alone).items() if name != "lo"}
    assert printed(ended, "sif")
    told = Told.of((ended.stdout + ended.stderr).splitlines())
    assert told.compiled == () and {"lz4", "bzip2"} <= set(told.taken), ended.stderr[-4000:]
    assert sent == {"docker0": 0}
