"""What an image shows of itself, on real parts: its bill of materials is counted from inside."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from image_builder.docker import daemon
from image_builder.host.cancellation import CancelToken
from image_builder.pipeline import BuildResult, build_image
from image_builder.proof import contents, materials, provenance, sbom
from image_builder.proof.keys import opened, read_signer
from image_builder.proof.materials import read_materials
from image_builder.request.parsing import parse_request
from image_builder.sif import format
from image_builder.store.folder import ImageStore
from tests.support.daemon_images import remove_images, remove_tags
from tests.support.recording import Heard
from tests.support.signing import make_key, read_statement
from tests.support.site import (
    PROJECT,
    RUN,
    RUNTIME_BASE_IMAGE,
    ImageRegistry,
    Site,
    git,
    make_site,
)
from tests.system.test_spack_standin import TARGET, build, described, inside, standin_base

pytestmark = pytest.mark.system

SCRIPT = """#!/bin/sh
set -e
folder="/srv/odd place/hand_made-3.1.dist-info"
mkdir -p "$folder" /srv/no.dist-info /tmp/root/spack-stage/x
printf 'Metadata-Version: 2.1\\nName: hand-made\\nVersion: 3.1\\nLicense: MIT\\n\\nLong text.\\n' >"$folder/METADATA"
printf 'hand_made.py,,\\n' >"$folder/RECORD"
"""
COUNTED = r"""
dpkg-query -W -f 'deb ${Package}:${Architecture} ${Version} ${db:Status-Status}\n' | grep ' installed$' || true
find / -xdev -path '*.dist-info/METADATA' -printf 'wheel %h\n' 2>/dev/null
find /opt/standin-spack -mindepth 1 -maxdepth 1 -printf 'spack %f\n' 2>/dev/null
exit 0
"""
"""What the image's own programs say is there."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("proof")
    with standin_base(root) as name:
        made = make_site(root).with_environ(
            CIC_BUILD_BASE_IMAGE=name, CIC_BUILD_RUNTIME_BASE_IMAGE=RUNTIME_BASE_IMAGE
        )
        yield made
        remove_images(made)


def files(more: str = "") -> dict[str, str]:
    step = described("needy", "openmpi@4", more="apt: [bc]\npip: [six]\n" + more)
    return {**step, "post_inst.sh": SCRIPT}


@dataclasses.dataclass(frozen=True)
class Bill:
    """The bill of materials of an image."""

    text: str

    @property
    def content(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.text)
        return read

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.content["packages"] if f"-{kind}-" in one["SPDXID"]]


def bill_of(site: Site, result: BuildResult) -> Bill:
    text = ImageStore(site.tmp_folder / "store").document(result.identity, sbom.FILE)
    assert text is not None
    return Bill(text)


def counted(image: str) -> dict[str, set[str]]:
    """The lines of `COUNTED` by their kinds."""
    lines = inside(image, "-c", COUNTED, entrypoint="/bin/sh").splitlines()
    kinds: dict[str, set[str]] = {"deb": set(), "wheel": set(), "spack": set()}
    for kind, _, rest in (line.partition(" ") for line in lines):
        kinds[kind].add(rest.removesuffix(" installed"))
    return kinds


def named(bill: Bill) -> dict[str, set[str]]:
    """What the bill names, in the words of `COUNTED`."""
    return {
        "deb": {
            f"{one['name']}:{one['externalRefs'][0]['referenceLocator'].rpartition('=')[2]} "
            f"{one['versionInfo']}"
            for one in bill.of("Deb")
        },
        "wheel": {
            one["comment"].removeprefix("installed as ").split("; its RECORD")[0]
            for one in bill.of("Wheel")
        },
        "spack": {
            one["comment"].partition("prefix /opt/standin-spack/")[2].partition(";")[0]
            for one in bill.of("Spack")
        },
    }


@pytest.mark.parametrize("is_slim", [False, True], ids=["full", "slim"])
def test_it_names_everything_that_is_there_and_no_more(
    site: Site, tmp_path: Path, is_slim: bool
) -> None:
    result = build(site, "slim" if is_slim else "full", files(f"slim: {str(is_slim).lower()}\n"))
    bill, there = bill_of(site, result), counted(result.image_id)
    file = tmp_path / sbom.FILE
    file.write_text(bill.text, "utf-8")

    assert named(bill) == there
    assert len(bill.of("Spack")) == (2 if is_slim else 3) and len(there["deb"]) > 50
    assert {"/srv/odd place/hand_made-3.1.dist-info"} < there["wheel"]
    assert {one["name"] for one in bill.of("Wheel")} >= {"six", "hand-made"}
    assert validate_full_spdx_document(parse_file(str(file))) == []
    assert bill.content["comment"].startswith("Slim" if is_slim else "Full")


@pytest.mark.parametrize("is_slim", [False, True], ids=["full", "slim"])
def test_what_the_build_used_is_kept_file_by_file(site: Site, is_slim: bool) -> None:
    """The image's own programs, and those of its base, say the same."""
    step = "slim-used" if is_slim else "used"
    result = build(site, step, files(f"slim: {str(is_slim).lower()}\n"))
    kept = ImageStore(site.tmp_folder / "store")
    used = read_materials(kept.document(result.identity, materials.FILE) or "")

    assert used.is_slim is is_slim and used.identity == result.identity
    assert used.step.commit == git(site.registry, "rev-parse", "HEAD")
    assert json.dumps(used.spack_lock) == kept.document(result.identity, "spack.lock")
    assert {one.name for one in used.sources} <= {"needy", "buildtool", "openmpi"}
    added = {one.name: one for one in used.debian.added}
    shown = inside(result.image_id, "-c", "dpkg-query -W bc", entrypoint="/bin/sh").split()
    assert added["bc"].version == shown[1] and used.debian.later == ()
    assert {f"{one.name} {one.version}" for one in used.debian.base} == of_base(used.base.reference)
    for one in (added["bc"], *(one for one in used.python if one.sha256)):
        assert re.fullmatch(r"[0-9a-f]{64}", one.sha256 or "") and one.file
    assert [(one.project, one.url) for one in used.python] == [("six", None)]


def of_base(image: str) -> set[str]:
    listed = inside(
        image, "-c", "dpkg-query -W -f '${Package} ${Version}\\n'", entrypoint="/bin/sh"
    )
    return set(listed.splitlines())


def test_it_is_an_object_of_the_sif_which_is_the_same_when_it_is_made_again(
    site: Site, tmp_path: Path
) -> None:
    result = build(site, "sif", files(), container_engine="singularity")
    bill = bill_of(site, result)
    listed = siftool("list", result.sif_path)
    line = next(line for line in listed.splitlines() if "SBOM" in line)
    assert "spdx-json" in line
    assert siftool("dump", line.split("|")[0].strip(), result.sif_path) == bill.text

    again = build_again(site, "sif")
    assert again.reused and bill_of(site, again).text == bill.text


def test_it_says_how_the_image_came_about(site: Site) -> None:
    heard = Heard()
    files_of_step = files("slim: false\nsmoke: [needy]\n")
    result = build(site, "made", files_of_step, heard=heard, container_engine="singularity")
    store = ImageStore(site.tmp_folder / "store")
    documents = {
        name: store.document(result.identity, name) for name in store.documents(result.identity)
    }
    said = statement(documents[provenance.FILE])
    predicate, definition = said["predicate"], said["predicate"]["buildDefinition"]

    subjects = {one["name"]: one["digest"]["sha256"] for one in said["subject"]}
    assert subjects == {
        result.image_id: daemon.find_image(result.image_id).removeprefix("sha256:"),
        result.filename: result.sha256,
    }
    assert definition["externalParameters"]["request"]["step_id"] == "made"
    assert definition["internalParameters"]["identity"] == result.identity
    materials = {one["name"]: one["digest"] for one in definition["resolvedDependencies"]}
    assert materials["step"]["gitCommit"] == git(site.registry, "rev-parse", "HEAD")
    assert len(materials["base image"]["sha256"]) == 64
    byproducts = {one["name"]: one for one in predicate["runDetails"]["byproducts"]}
    for name in (sbom.FILE, "spack.lock"):
        text = documents[name]
        assert text is not None
        assert byproducts[name]["digest"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert byproducts["audit"]["annotations"] == result.audit
    lines = heard.lines[: byproducts["log"]["annotations"]["lines"]]
    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert byproducts["log"]["digest"]["sha256"] == digest and len(lines) > 20

    inside_sif = statement(object_of(result.sif_path, provenance.FILE))
    assert inside_sif["predicate"]["buildDefinition"] == definition
    assert "metadata" in predicate["runDetails"]
    assert "metadata" not in inside_sif["predicate"]["runDetails"]
    for one in inside_sif["subject"]:
        content = object_of(result.sif_path, "" if one["name"] == "squashfs" else one["name"])
        assert hashlib.sha256(content).hexdigest() == one["digest"]["sha256"], one["name"]
    assert len(inside_sif["subject"]) == 5


def test_the_same_image_becomes_the_same_sif(site: Site, tmp_path: Path) -> None:
    """Bit for bit, from a container of its own and a moment of its own; so it is when stored.

    The first is made while the image is looked at, the second by itself.
    """
    heard = Heard()
    result = build(site, "same", files(), heard=heard, container_engine="singularity")
    assert any(line.startswith("Completing the squashfs") for line in heard.lines)
    store = ImageStore(site.tmp_folder / "store")
    assert result.sha256 is not None and store.remove(result.sha256)

    heard = Heard()
    again = build_again(site, "same", "singularity", heard=heard)
    assert again.reused and again.sha256 == result.sha256
    assert any(line.startswith("Streaming the image") for line in heard.lines)
    assert not list((site.root / "workspace").glob("**/begun"))
    ran = subprocess.run(
        ["apptainer", "exec", "--userns", str(again.sif_path), "needy"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.startswith("needy 1.0")


def test_a_signed_image_is_verified_by_apptainer_and_by_the_client(
    site: Site, tmp_path: Path
) -> None:
    """And its documents are signed; the key is in no log, no process's arguments and no image."""
    key = make_key(tmp_path / "key.pem", "ed25519")
    signer, heard = read_signer(key), Heard()
    (tmp_path / "keys.pem").write_text(signer.public_pem)
    signing = site.with_environ(CIC_PROOF_KEY=str(key))
    result = build(signing, "signed", files(), heard=heard, container_engine="singularity")
    assert result.sif_path is not None

    judged = subprocess.run(
        ["apptainer", "verify", "--key", "keys.pem", str(result.sif_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert judged.returncode == 0, judged.stderr
    client = subprocess.run(
        [str(PROJECT / "cic_cli"), "verify", str(result.sif_path), str(tmp_path / "keys.pem")],
        capture_output=True,
        text=True,
    )
    assert client.returncode == 0, client.stderr
    assert (
        f"identity: {result.identity}" in client.stdout and '"step_id": "signed"' in client.stdout
    )

    store = ImageStore(site.tmp_folder / "store")
    for name, signed_name, media_type in (
        (sbom.FILE, sbom.SIGNED_FILE, sbom.MEDIA_TYPE),
        (provenance.FILE, provenance.SIGNED_FILE, provenance.MEDIA_TYPE),
    ):
        text, envelope = (store.document(result.identity, one) for one in (name, signed_name))
        assert text is not None and envelope is not None
        assert opened(envelope.encode(), media_type, signer.public_pem) == text.encode()

    secret = key.read_text().splitlines()[1]
    assert secret not in "\n".join(heard.lines)
    assert secret.encode() not in result.sif_path.read_bytes()

    assert result.sha256 is not None and store.remove(result.sha256)
    assert build_again(signing, "signed", "singularity").sha256 == result.sha256


def test_a_pushed_image_is_signed_as_cosign_reads_it(
    site: Site, image_registry: ImageRegistry, tmp_path: Path
) -> None:
    """Read by the registry's own interface and judged by openssl, which know nothing of ours."""
    key = make_key(tmp_path / "key.pem", "p256")
    (tmp_path / "keys.pem").write_text(read_signer(key).public_pem)
    pushing = site.with_environ(
        CIC_PROOF_KEY=str(key),
        **image_registry.environ,
    )
    site.add_step("spack", "pushed", {"run-of-tests.txt": RUN, **described("heat")})
    result = build_again(pushing, "pushed", push=True)
    again = build_again(pushing, "pushed", push=True)
    assert again.reused and again.pushed_digest == result.pushed_digest is not None
    remove_tags(f"{image_registry.host}/")

    name = result.image_id.split("/", 1)[1].rpartition(":")[0]
    tag = f"{result.pushed_digest.replace(':', '-')}.sig"
    manifest = image_registry.get(name, f"manifests/{tag}")
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    payload = image_registry.get(name, f"blobs/{layer['digest']}")
    assert payload["critical"]["image"]["docker-manifest-digest"] == result.pushed_digest
    assert payload["critical"]["identity"]["docker-reference"] == f"{image_registry.host}/{name}"
    config = image_registry.get(name, f"blobs/{manifest['config']['digest']}")
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]

    content = json.dumps(payload, separators=(",", ":")).encode()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer["digest"]
    signature = layer["annotations"]["dev.cosignproject.cosign/signature"]
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    judged = subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", "keys.pem", "-signature", "signature"],
        cwd=tmp_path,
        input=content,
        capture_output=True,
    )
    assert judged.returncode == 0, judged.stdout

    manifest = image_registry.get(name, f"manifests/{result.pushed_digest.replace(':', '-')}.att")
    stated = {
        layer["annotations"]["predicateType"]: layer_statement(image_registry, name, layer, key)
        for layer in manifest["layers"]
    }
    assert len(manifest["layers"]) == len(stated) == 2  # and no more after the second push
    documents = ImageStore(site.tmp_folder / "store")
    bill = documents.document(result.identity, sbom.FILE)
    assert bill is not None and stated["https://spdx.dev/Document"]["predicate"] == json.loads(bill)
    made = stated["https://slsa.dev/provenance/v1"]["predicate"]
    kept = statement(documents.document(result.identity, provenance.FILE))["predicate"]
    assert made["buildDefinition"] == kept["buildDefinition"]
    for each in stated.values():
        (subject,) = each["subject"]
        assert f"sha256:{subject['digest']['sha256']}" == result.pushed_digest


@pytest.mark.endurance
def test_skopeo_takes_a_pushed_image_for_its_key_alone(
    site: Site, image_registry: ImageRegistry, tmp_path: Path
) -> None:
    """Its reader of cosign's signatures is nobody's of this project."""
    folder = Path("/var/tmp/cic-test-skopeo")
    subprocess.run([PROJECT / "tests" / "support" / "newer_skopeo", folder], check=True)
    key, other = (make_key(tmp_path / f"{name}.pem", "p256") for name in ("key", "other"))
    pushing = site.with_environ(
        CIC_PROOF_KEY=str(key),
        **image_registry.environ,
    )
    site.add_step("spack", "judged", {"run-of-tests.txt": RUN, **described("heat")})
    result = build_again(pushing, "judged", push=True)
    remove_tags(f"{image_registry.host}/")
    image = f"{result.image_id.rpartition(':')[0]}@{result.pushed_digest}"
    refusals = [
        skopeo_refuses(image_registry, image, read_signer(each).public_pem, folder)
        for each in (key, other)
    ]
    assert refusals[0] is None, refusals
    assert refusals[1] is not None and "cryptographic signature" in refusals[1], refusals


def skopeo_refuses(
    image_registry: ImageRegistry, image: str, public_pem: str, root: Path
) -> str | None:
    """Why skopeo does not copy an image that it wants signed with a key, None where it copies it."""
    with tempfile.TemporaryDirectory(dir=root / "tmp") as name:
        folder = Path("/tmp", Path(name).name)
        wanted = {
            "type": "sigstoreSigned",
            "keyPath": f"{folder}/key.pem",
            "signedIdentity": {"type": "matchRepository"},  # as cosign's, it names no tag
        }
        policy = {"default": [{"type": "reject"}], "transports": {"docker": {"": [wanted]}}}
        Path(name, "policy.json").write_text(json.dumps(policy))
        Path(name, "key.pem").write_text(public_pem)
        Path(name, "registry.yaml").write_text(
            f"docker:\n  {image_registry.host}:\n    use-sigstore-attachments: true\n"
        )
        command = [
            *("chroot", root, "skopeo", f"--policy={folder}/policy.json"),
            *(f"--registries.d={folder}", "copy", "--quiet", "--src-tls-verify=false"),
            f"--src-creds={image_registry.user}:{image_registry.password}",
            *(f"docker://{image}", f"dir:{folder}/copy"),
        ]
        ran = subprocess.run(command, capture_output=True, text=True)
    return ran.stderr if ran.returncode else None


def layer_statement(
    image_registry: ImageRegistry, name: str, layer: dict[str, Any], key: Path
) -> dict[str, Any]:
    """The statement in a layer of what cosign calls attestations, judged by in-toto's own code."""
    assert layer["mediaType"] == "application/vnd.dsse.envelope.v1+json"
    envelope = image_registry.get(name, f"blobs/{layer['digest']}")
    read = read_statement(json.dumps(envelope).encode(), read_signer(key).public_pem)
    assert read["predicateType"] == layer["annotations"]["predicateType"]
    return read


def statement(text: str | bytes | None) -> dict[str, Any]:
    assert text is not None
    read: dict[str, Any] = json.loads(text)
    return read


def object_of(sif: Path | None, name: str) -> bytes:
    """The content of a SIF's object, the partition for an empty name."""
    assert sif is not None
    found = [
        one
        for number, one in enumerate(format.read(sif).descriptors, 1)
        if name in (one.name, f"object {number}") and (name or one.is_primary_partition)
    ]
    return sif.read_bytes()[found[0].offset :][: found[0].size_bytes]


def test_a_rebuild_whose_bill_cannot_be_made_keeps_no_earlier_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor its envelope: the image that they were about is gone."""
    signing = site.with_environ(CIC_PROOF_KEY=str(make_key(tmp_path / "key.pem", "ed25519")))
    result = build(signing, "forced", described("heat"))
    store = ImageStore(site.tmp_folder / "store")
    assert {sbom.FILE, sbom.SIGNED_FILE} <= set(store.documents(result.identity))

    monkeypatch.setattr(contents, "MAX_KEPT_BYTES", 10)  # the image's lists are larger
    heard = Heard()
    again = build_again(signing, "forced", force=True, heard=heard)
    assert again.identity == result.identity and not again.reused
    assert any("gets no bill of materials" in line for line in heard.lines)
    assert not {sbom.FILE, sbom.SIGNED_FILE} & set(store.documents(result.identity))
    assert provenance.SIGNED_FILE in store.documents(result.identity)


def test_a_site_may_do_without(site: Site) -> None:
    plain = site.with_environ(CIC_PROOF_SBOM="false", CIC_PROOF_PROVENANCE="false")
    result = build(plain, "plain", described("heat"))
    store = ImageStore(site.tmp_folder / "store")
    assert not {sbom.FILE, provenance.FILE} & set(store.documents(result.identity))

    again = build_again(site, "plain")
    assert again.reused and bill_of(site, again).of("Spack")


def build_again(
    site: Site,
    step: str,
    engine: str = "docker",
    *,
    push: bool = False,
    force: bool = False,
    heard: Heard | None = None,
) -> BuildResult:
    """Ask for an image of a step that is in the registry already."""
    machine = {"platform": "linux/amd64", "architecture": TARGET, "container_engine": engine}
    asked = {"workflow": "spack", "step_id": step, "push": push, "force": force}
    return build_image(
        parse_request({"machine": machine, **asked}),
        settings=site.settings.library,
        workspace=site.root / "workspace",
        observer=heard or Heard(),
        cancel=CancelToken(),
    )


def siftool(verb: str, *arguments: Any) -> str:
    """What Apptainer's own tool prints about a SIF."""
    return subprocess.run(
        ["apptainer", "sif", verb, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout
