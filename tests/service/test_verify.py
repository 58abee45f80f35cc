"""Signed images: the keys that a service publishes, and `cic_cli verify`, for which no byte of an image
may be another than what was signed.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask

from image_builder.proof import provenance, sbom
from image_builder.proof.keys import read_signer
from image_builder.sif import format
from tests.service.conftest import ROOT, FakeBuilder, running_app
from tests.support.signing import (
    flipped,
    make_key,
    mixed_with_another,
    signed_folder,
)
from tests.support.site import PROJECT, Site

NOT_PROVEN, WRONG_USAGE = 6, 2
kinds = pytest.mark.parametrize("kind", ["ed25519", "p256"])


@pytest.fixture(scope="module", params=["ed25519", "p256"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed image and the public key for it."""
    return signed_folder(tmp_path_factory.mktemp("signed"), request.param)


def verify(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(
        [str(PROJECT / "cic_cli"), "verify", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environ,
    )


def changed(folder: Path, number: int, content: bytes) -> Path:
    path = folder / f"changed-{number}.sif"
    path.write_bytes(content)
    return path


def refused(folder: Path, tampered: Iterator[tuple[object, bytes]]) -> list[object]:
    """Which of these contents are accepted, or are refused without a reason."""

    def accepted(numbered: tuple[int, tuple[object, bytes]]) -> object:
        number, (label, content) = numbered
        path = changed(folder, number, content)
        ended = verify(path, folder / "keys.pem")
        path.unlink()
        is_refused = ended.returncode == NOT_PROVEN and "is not what was signed" in ended.stderr
        return None if is_refused and not ended.stdout else (label, ended.returncode, ended.stderr)

    with ThreadPoolExecutor(2) as executor:
        return [one for one in executor.map(accepted, enumerate(tampered)) if one is not None]


def test_what_was_signed_is_accepted_and_said(folder: Path) -> None:
    ended = verify(folder / "image.sif", folder / "keys.pem")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "signed with key 1 of 1" in ended.stdout
    assert f"identity: sha256:{'1' * 64}" in ended.stdout
    assert "all 6 objects are what was signed, with a bill of materials" in ended.stdout
    assert '"step_id": "hello"' in ended.stdout


def test_any_of_several_keys_will_do(folder: Path, tmp_path: Path) -> None:
    other = read_signer(make_key(tmp_path / "other.pem", "ed25519")).public_pem
    both = tmp_path / "both.pem"
    both.write_text(other.replace("\n", "\r\n") + (folder / "keys.pem").read_text().rstrip())
    assert "signed with key 2 of 2" in verify(folder / "image.sif", both).stdout
    both.write_text(other)
    ended = verify(folder / "image.sif", both)
    assert ended.returncode == NOT_PROVEN and "none of the keys" in ended.stderr


def test_a_flipped_bit_in_any_object_is_found(folder: Path) -> None:
    content = (folder / "image.sif").read_bytes()
    objects = format.read(folder / "image.sif").descriptors
    assert {one.name for one in objects} >= {sbom.FILE, provenance.SIGNED_FILE}
    places = [
        ((one.id, place), flipped(content, place))
        for one in objects
        for place in (one.offset, one.offset + one.size_bytes // 2, one.offset + one.size_bytes - 1)
    ]
    assert refused(folder, iter(places)) == []


def test_bytes_that_apptainer_does_not_look_at_are_looked_at(folder: Path) -> None:
    """Of the header: its architecture, its times, its counts. Of a descriptor: place, group, times
    of change. And what is between parts, and behind them.
    """
    content = (folder / "image.sif").read_bytes()
    partition = format.read(folder / "image.sif").primary
    in_header = (45, 64, 72, 80, 88, 96, 104, 112, 120, 200, 4095)
    in_row = (5, 9, 13, 17, 25, 33, 41, 49, 57, 65, 73, 200, 201, 584)
    places = [
        *in_header,
        *(4096 + slot * 585 + at for slot in (0, 5) for at in in_row),
        4096 + 7 * 585,
        partition.offset - 1,
    ]
    tampered = [(place, flipped(content, place)) for place in places]
    tampered += [("longer", content + b"\0"), ("cut", content[:-1])]
    assert refused(folder, iter(tampered)) == []


def test_parts_of_two_images_of_one_key_do_not_make_one(folder: Path, tmp_path: Path) -> None:
    tampered = mixed_with_another(folder, tmp_path / "other.sif")
    assert refused(folder, iter(tampered)) == []


@pytest.mark.endurance
def test_no_byte_at_a_thousand_random_places_may_be_another(folder: Path) -> None:
    content, chance = (folder / "image.sif").read_bytes(), random.Random(21)
    places = [(chance.randrange(len(content)), chance.randrange(8)) for _ in range(1000)]
    tampered = ((place, flipped(content, *place)) for place in places)
    assert refused(folder, tampered) == []


def test_an_image_that_nobody_signed_is_refused(folder: Path) -> None:
    source, plain = folder / "image.sif", folder / "plain.sif"
    if not plain.exists():
        format.rewrite(source, plain, time_s=0, evidence=format.NoEvidence())
    ended = verify(plain, folder / "keys.pem")
    assert ended.returncode == NOT_PROVEN
    noise = folder / "noise.sif"
    noise.write_bytes(bytes(range(256)) * 200)
    ended = verify(noise, folder / "keys.pem")
    assert ended.returncode == NOT_PROVEN and "no SIF" in ended.stderr


def test_what_cannot_be_read_is_wrong_usage(folder: Path) -> None:
    for arguments in (
        ("nothing.sif", "keys.pem"),
        ("image.sif", "nothing"),
        ("image.sif", "key.pem"),
    ):
        ended = verify(*(folder / name for name in arguments))
        assert ended.returncode == WRONG_USAGE, ended
    assert verify(folder / "image.sif").returncode == WRONG_USAGE


def test_the_published_keys_need_no_login(site: Site, builder: FakeBuilder, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key.pem", "ed25519")
    old = read_signer(make_key(tmp_path / "old.pem", "p256")).public_pem
    (tmp_path / "old.pub").write_text(old)
    signing = site.with_environ(
        CIC_PROOF_KEY=str(key), CIC_PROOF_OLD_PUBLIC_KEYS=str(tmp_path / "old.pub")
    )
    with running_app(signing.settings, builder) as app:
        answer = app.test_client().get(f"{ROOT}/key/")
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert answer.text == read_signer(key).public_pem + old


def test_a_service_without_a_key_publishes_none(app: Flask) -> None:
    answer = app.test_client().get(f"{ROOT}/key/")
    assert answer.status_code == 404 and "signs no images" in answer.get_json()["detail"]
