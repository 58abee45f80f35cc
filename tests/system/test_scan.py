"""The operator's scanner looks at real images; what it knows is made up, and it says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from image_builder.docker import daemon
from image_builder.errors import BuildFailed, CicError, ErrorCode
from image_builder.proof import sarif
from image_builder.store.folder import ImageStore
from tests.support.daemon_images import remove_images
from tests.support.recording import Heard
from tests.support.site import Site, make_site
from tests.system.test_proof import build_again
from tests.system.test_spack_standin import TARGET, build, described, standin_base

pytestmark = pytest.mark.system

SCANNER = """
import json, os, sys, tarfile

rules, results = [], []
def found(rule, score, what):
    rules.append({"id": rule, "properties": {"security-severity": score}, "helpUri": "https://example.org/" + rule})
    where = [{"logicalLocations": [{"fullyQualifiedName": what}]}]
    results.append({"ruleId": rule, "message": {"text": "made up for a test"}, "locations": where})

print("secret", [key for key in os.environ if key.startswith("CIC_")], file=sys.stderr)
path, way = sys.argv[1:3]
if way == "sbom":
    for package in json.load(open(path))["packages"]:
        if package["name"] == "heat":
            found("CVE-0001", "7.5", "heat@" + package["versionInfo"])
else:
    found("CVE-0002", "3.0", str(len([one for one in tarfile.open(path) if "json" in one.name]) > 1))
if way == "fails":
    sys.exit(1)
if way == "nothing":
    sys.exit(0)
driver = {"name": "stand-in", "semanticVersion": "1.0", "rules": rules}
print(json.dumps({"version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}))
"""
"""In place of a scanner: it knows of one package that it is bad."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("scan")
    (root / "scanner.py").write_text(SCANNER)
    with standin_base(root) as name:
        made = make_site(root).with_environ(CIC_BUILD_BASE_IMAGE=name)
        yield made
        remove_images(made)


def scanning(site: Site, *arguments: str, fail_on: str = "") -> Site:
    command = ",".join((sys.executable, str(site.root / "scanner.py"), *arguments))
    return site.with_environ(CIC_SCAN_COMMAND=command, CIC_SCAN_FAIL_ON=fail_on)


def test_what_was_found_is_a_document_and_in_the_record(site: Site) -> None:
    heard = Heard()
    result = build(scanning(site, "{sbom}", "sbom"), "found", described("heat"), heard=heard)
    store = ImageStore(site.tmp_folder / "store")
    said = json.loads(store.document(result.identity, sarif.FILE) or "")
    assert (said["scanner"], said["counts"]["high"]) == ("stand-in 1.0", 1)
    (finding,) = said["findings"]
    assert finding["id"] == "CVE-0001" and finding["where"].startswith("heat@")
    record = store.by_identity(result.identity)
    assert record is not None and record.details["scan"]["counts"]["high"] == 1
    assert any("CVE-0001" in line for line in heard.lines)
    assert "secret []" in heard.lines  # nothing of the service's settings is in its environment


def test_an_image_is_scanned_as_an_archive(site: Site) -> None:
    result = build(scanning(site, "{archive}", "archive"), "archived", described("heat"))
    said = json.loads(
        ImageStore(site.tmp_folder / "store").document(result.identity, sarif.FILE) or ""
    )
    assert [(one["id"], one["where"]) for one in said["findings"]] == [("CVE-0002", "True")]
    assert not list((site.root / "workspace").glob("**/image.tar"))


def test_what_is_too_severe_gets_no_name(site: Site) -> None:
    strict, heard = scanning(site, "{sbom}", "sbom", fail_on="high"), Heard()
    with pytest.raises(BuildFailed, match=r"CVE-0001 \(high\)") as caught:
        build(strict, "severe", described("heat"), heard=heard)
    assert caught.value.code is ErrorCode.VULNERABLE
    prefix = site.settings.library.registry.images_prefix
    name = f"{prefix}spack_severe_{TARGET}_nompi_nogpu:latest"
    assert not daemon.has_image(name)
    lenient = scanning(site, "{sbom}", "sbom", fail_on="critical")
    assert build_again(lenient, "severe").image_id == name and daemon.has_image(name)


@pytest.mark.parametrize("how", ["fails", "nothing"])
def test_a_scan_that_fails_is_a_warning_or_fails_the_build(site: Site, how: str) -> None:
    heard = Heard()
    build(scanning(site, "{sbom}", how), f"lenient-{how}", described("heat"), heard=heard)
    assert any("Warning: the image was not scanned" in line for line in heard.lines)
    with pytest.raises(CicError, match="could not be scanned") as caught:
        build(scanning(site, "{sbom}", how, fail_on="low"), f"strict-{how}", described("heat"))
    assert caught.value.code is ErrorCode.SCAN_FAILED
