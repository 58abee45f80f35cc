"""`cic verify`: no byte of an image file may be another than what was signed; as `cic_cli verify` says."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from cic_client import keys
from cic_client.errors import BadInput, ClientError
from cic_client.verifying import NotProven, verify
from werkzeug.serving import make_server

from image_builder.proof.keys import read_signer
from image_builder.sif import format
from tests.client.conftest import Cic
from tests.conftest import PROJECT
from tests.service.conftest import FakeBuilder, running_app
from tests.support.signing import (
    flipped,
    make_key,
    mixed_with_another,
    sif_of,
    signed_folder,
)
from tests.support.site import Site

NOT_PROVEN, WRONG_USAGE = 6, 2


@pytest.fixture(scope="module", params=["ed25519", "p256"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed image and the public key for it."""
    return signed_folder(tmp_path_factory.mktemp("signed"), request.param)


def accepted(folder: Path, tampered: Iterable[tuple[object, bytes]]) -> list[object]:
    """Which of these contents are accepted."""
    path, trusted = folder / "changed.sif", (folder / "keys.pem").read_text()
    labels = []
    for label, content in tampered:
        path.write_bytes(content)
        try:
            verify(path, trusted)
        except NotProven:
            continue
        labels.append(label)
    return labels


def test_what_was_signed_is_accepted_and_said(folder: Path) -> None:
    proof = verify(folder / "image.sif", (folder / "keys.pem").read_text())
    assert (proof.key, proof.keys, proof.objects) == (1, 1, 6)
    assert proof.identity == f"sha256:{'1' * 64}"
    assert proof.request["step_id"] == "hello"
    assert proof.bill == {"spdxVersion": "SPDX-2.3"}


def test_a_flipped_bit_at_a_thousand_random_places_is_found(folder: Path) -> None:
    content, chance = (folder / "image.sif").read_bytes(), random.Random(21)
    places = [(chance.randrange(len(content)), chance.randrange(8)) for _ in range(1000)]
    assert accepted(folder, ((place, flipped(content, *place)) for place in places)) == []


def test_a_flipped_bit_in_any_object_and_any_byte_of_the_table_is_found(folder: Path) -> None:
    content = (folder / "image.sif").read_bytes()
    objects = format.read(folder / "image.sif").descriptors
    places = [
        *(
            one.offset + at
            for one in objects
            for at in (0, one.size_bytes // 2, one.size_bytes - 1)
        ),
        *range(128),
        *range(4096, 4096 + (len(objects) + 1) * 585),
        format.read(folder / "image.sif").primary.offset - 1,
    ]
    tampered = [(place, flipped(content, place)) for place in places]
    assert accepted(folder, [*tampered, ("longer", content + b"\0"), ("cut", content[:-1])]) == []


def test_parts_of_two_images_of_one_key_do_not_make_one(folder: Path, tmp_path: Path) -> None:
    tampered = mixed_with_another(folder, tmp_path / "other.sif")
    assert accepted(folder, tampered) == []


def test_any_of_several_keys_will_do(folder: Path, tmp_path: Path) -> None:
    image, own = folder / "image.sif", (folder / "keys.pem").read_text()
    other = read_signer(make_key(tmp_path / "other.pem", "ed25519")).public_pem
    large = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "RSA", "-out", large], check=True)
    of_another_kind = subprocess.run(
        ["openssl", "pkey", "-in", large, "-pubout"], check=True, capture_output=True, text=True
    ).stdout
    proof = verify(image, other.replace("\n", "\r\n") + of_another_kind + own.rstrip())
    assert (proof.key, proof.keys) == (3, 3)
    with pytest.raises(NotProven, match="none of the keys"):
        verify(image, other + of_another_kind)


def test_what_nobody_signed_and_what_is_no_image_is_refused(folder: Path, tmp_path: Path) -> None:
    trusted = (folder / "keys.pem").read_text()
    plain = tmp_path / "plain.sif"
    format.rewrite(folder / "image.sif", plain, time_s=0, evidence=format.NoEvidence())
    with pytest.raises(NotProven):
        verify(plain, trusted)
    for content, why in ((bytes(range(256)) * 200, "no SIF"), (b"", "no SIF")):
        (tmp_path / "noise.sif").write_bytes(content)
        with pytest.raises(NotProven, match=why):
            verify(tmp_path / "noise.sif", trusted)
    with pytest.raises(BadInput, match="cannot be read"):
        verify(tmp_path / "nothing.sif", trusted)
    with pytest.raises(BadInput, match="/key/"):
        verify(folder / "image.sif", (folder / "key.pem").read_text())


def test_without_cryptography_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "HAS_CRYPTOGRAPHY", False)
    with pytest.raises(ClientError, match="pip install cryptography"):
        verify(folder / "image.sif", (folder / "keys.pem").read_text())


def test_the_client_is_imported_without_cryptography() -> None:
    code = "import sys; sys.modules['cryptography'] = None; import cic_client.cli"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT / "client", check=True)


def test_the_command_says_the_same_as_cic_cli(folder: Path, cic: Cic, tmp_path: Path) -> None:
    def said(image: Path, trusted: Path) -> list[tuple[int, str, str]]:
        command = [str(PROJECT / "cic_cli"), "verify", str(image), str(trusted)]
        by_bash = subprocess.run(command, capture_output=True, text=True)
        by_python = cic("verify", str(image), str(trusted))
        return [
            (one.returncode, one.stdout.partition("provenance:")[0], one.stderr.partition(" ")[2])
            for one in (by_bash, by_python)
        ]

    by_bash, by_python = said(folder / "image.sif", folder / "keys.pem")
    assert by_bash == by_python and by_python[0] == 0 and "bill of materials" in by_python[1]
    content = (folder / "image.sif").read_bytes()
    changed = tmp_path / "changed.sif"
    for place in (45, 4101, len(content) // 2, len(content) - 1):
        changed.write_bytes(flipped(content, place))
        by_bash, by_python = said(changed, folder / "keys.pem")
        assert by_bash == by_python and by_python[0] == NOT_PROVEN, place
    by_bash, by_python = said(tmp_path / "nothing.sif", folder / "keys.pem")
    assert by_bash[0] == by_python[0] == WRONG_USAGE

    answer = cic("verify", "--json", str(folder / "image.sif"), str(folder / "keys.pem"))
    assert json.loads(answer.stdout)["statement"]["predicateType"].startswith("https://slsa.dev/")


STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: libstdc++6
Status: install ok installed
Architecture: amd64
Version: 1:12.2~rc.0-14
"""
BILL_OF_IMAGE = {
    "packages": [
        {"name": "hello", "comment": "platform linux/amd64"},
        *(
            {"externalRefs": [{"referenceLocator": f"pkg:deb/debian/{purl}?arch=amd64"}]}
            for purl in ("libc6@2.36-9%2Bdeb12u10", "libstdc%2B%2B6@1%3A12.2~rc.0-14")
        ),
        {
            "comment": f"installed as /opt/view/a b-1.dist-info; its RECORD has the SHA-256 {'0' * 64}"
        },
        {"comment": "hash abcdefg; target zen2; prefix /opt/spack/zlib-1; variants +pic"},
    ]
}


@pytest.mark.parametrize(
    ("gone", "status", "reason"),
    [
        ("", STATUS, ""),
        ("opt/view/a b-1.dist-info", STATUS, "names /opt/view/a b-1.dist-info, which is not in it"),
        ("opt/spack/zlib-1", STATUS, "names /opt/spack/zlib-1, which is not in it"),
        (
            "",
            STATUS.replace("9+deb", "8+deb"),
            "names libc6 2.36-9+deb12u10 amd64, which is not installed",
        ),
        (
            "",
            STATUS.replace("deinstall ok config-files", "install ok installed"),
            "gone 1.0 amd64 is installed in it, which its bill",
        ),
        ("", "", ""),
    ],
    ids=["equal", "no wheel", "no prefix", "other version", "more", "no dpkg"],
)
def test_the_bill_of_materials_is_compared_with_the_files(
    folder: Path, cic: Cic, tmp_path: Path, gone: str, status: str, reason: str
) -> None:
    """By both clients alike; all of it is signed, so that only its maker could have made it wrong."""
    root, signer = tmp_path / "root", read_signer(folder / "key.pem")
    for name in ("var/lib/dpkg", "opt/view/a b-1.dist-info", "opt/spack/zlib-1"):
        if name != gone:
            (root / name).mkdir(parents=True)
    if status:
        (root / "var/lib/dpkg/status").write_text(status)
    squashfs, image = tmp_path / "image.squashfs", tmp_path / "image.sif"
    subprocess.run(["mksquashfs", root, squashfs, "-quiet", "-no-progress"], check=True)
    bill = json.dumps(BILL_OF_IMAGE, sort_keys=True, indent=1) + "\n"
    sif_of(image, squashfs, signer, bill.encode())
    arguments = ("verify", str(image), str(folder / "keys.pem"))
    by_bash = subprocess.run([str(PROJECT / "cic_cli"), *arguments], capture_output=True, text=True)
    by_python = cic(*arguments)
    for ended in (by_bash, by_python):
        if reason:
            assert ended.returncode == NOT_PROVEN and reason in ended.stderr, ended
        else:
            assert ended.returncode == 0, ended.stderr
            assert "bill of materials: its 4 packages are in the image" in ended.stdout


def test_without_unsquashfs_it_says_what_was_not_compared(
    folder: Path, cic: Cic, tmp_path: Path
) -> None:
    bill = json.dumps(BILL_OF_IMAGE, sort_keys=True, indent=1).encode()
    (tmp_path / "some.squashfs").write_bytes((folder / "image.sif").read_bytes())
    signer = read_signer(folder / "key.pem")
    image = sif_of(tmp_path / "image.sif", tmp_path / "some.squashfs", signer, bill)
    programs = tmp_path / "bin"
    programs.mkdir()
    for path in map(Path, ("/usr/bin", "/bin")):
        for program in path.iterdir():
            if program.name != "unsquashfs" and not (programs / program.name).exists():
                (programs / program.name).symlink_to(program)
    environ = {**cic.environ, "PATH": str(programs)}
    command = [str(PROJECT / "cic_cli"), "verify", str(image), str(folder / "keys.pem")]
    by_bash = subprocess.run(command, capture_output=True, text=True, env=environ)
    by_python = cic(*command[1:], PATH=str(programs))
    for ended in (by_bash, by_python):
        assert ended.returncode == 0, ended.stderr
        assert "not compared with the files, which takes unsquashfs" in ended.stdout


def test_without_a_file_of_keys_those_of_the_service_are_taken(
    folder: Path, site: Site, builder: FakeBuilder, cic: Cic
) -> None:
    signing = site.with_environ(CIC_PROOF_KEY=str(folder / "key.pem"))
    with running_app(signing.settings, builder) as app:
        server = make_server("127.0.0.1", 0, app, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        login = {"CIC_URL": f"http://127.0.0.1:{server.server_port}", "CIC_TOKEN": "none"}
        answer = cic("verify", str(folder / "image.sif"), **login)
        server.shutdown()
        server.server_close()
    assert answer.returncode == 0 and "signed with key 1 of 1" in answer.stdout, answer.stderr
