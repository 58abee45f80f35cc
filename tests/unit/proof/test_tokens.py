"""Keys on a PKCS#11 token: SoftHSM, a token in software, with keys that OpenSSL made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from image_builder.errors import Misconfigured
from image_builder.proof import keys, tokens
from image_builder.proof.keys import opened, read_signer
from image_builder.settings import ProofSettings, TokenKey
from tests.support.signing import make_key

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
TYPE = "application/vnd.in-toto+json"
PIN = "canary-1234"
KINDS = ("ed25519", "p256")
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a token's settings: it holds a key of each kind, which are in files, too."""
    if shutil.which("softhsm2-util") is None:
        pytest.skip("softhsm2 is not installed: scripts/setup --tests installs it")
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\n")
    with pytest.MonkeyPatch.context() as patch:
        # SoftHSM reads this once in a process, so that there is one such folder in all tests.
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        softhsm("--init-token", "--free", "--label", "a token", "--so-pin", "87654321")
        for number, kind in enumerate((*KINDS, "other"), 1):
            key = make_key(folder / f"{kind}.pem", kind if kind in KINDS else "ed25519")
            into = ("--token", "a token", "--label", f"key {kind}", "--id", f"0{number}")
            softhsm("--import", str(key), *into)
        large = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
        openssl = ["openssl", "genpkey", *large, "-out", str(folder / "p384.pem")]
        subprocess.run(openssl, check=True, capture_output=True)
        softhsm(
            "--import",
            str(folder / "p384.pem"),
            "--token",
            "a token",
            "--label",
            "large",
            "--id",
            "09",
        )
        pin = folder / "pin"
        pin.touch(mode=0o600)
        pin.write_text(PIN + "\n")
        yield folder


def softhsm(*arguments: str) -> None:
    command = ["softhsm2-util", *arguments, "--pin", PIN]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)


def uri(folder: Path, label: str, *, token: str = "a%20token", module: Path = MODULE) -> str:
    return f"pkcs11:token={token};object={label}?module-path={module}&pin-source=file:{folder}/pin"


def key_of(text: str) -> TokenKey:
    key = ProofSettings.model_validate({"key": text}).key
    assert isinstance(key, TokenKey)
    return key


@kinds
def test_what_a_token_signs_opens_with_the_public_key(token: Path, kind: str) -> None:
    signer, file = (
        read_signer(key_of(uri(token, f"key%20{kind}"))),
        read_signer(token / f"{kind}.pem"),
    )
    assert signer.public_pem == file.public_pem
    envelopes = [signer.envelope(TYPE, b"%04d" % number) for number in range(20)]
    assert len({len(one) for one in (*envelopes, file.envelope(TYPE, b"0000"))}) == 1
    for number, envelope in enumerate(envelopes):
        assert opened(envelope, TYPE, file.public_pem) == b"%04d" % number
    if kind == "ed25519":
        assert signer.sign(b"message") == file.sign(b"message")


def test_the_key_is_published_before_old_ones(token: Path) -> None:
    old = read_signer(token / "p256.pem").public_pem
    (token / "old.pub").write_text(old)
    text = uri(token, "key%20ed25519")
    settings = ProofSettings.model_validate({"key": text, "old_public_keys": token / "old.pub"})
    assert keys.published(settings) == [read_signer(token / "ed25519.pem").public_pem, old]


@pytest.mark.parametrize(
    ("changes", "reason", "hint"),
    [
        ({"label": "no%20such%20key"}, "there is no public key of that label", "object="),
        ({"token": "nothing"}, "There is no PKCS#11 token 'nothing'", "token="),
        ({"module": Path("/usr/lib/nothing.so")}, "cannot be used", "pkcs11-tool"),
        ({"label": "large"}, "neither Ed25519 nor ECDSA on P-256", "Make one of these"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(
    token: Path, changes: dict[str, str], reason: str, hint: str
) -> None:
    asked = {"label": "key%20ed25519", **changes}
    with pytest.raises(Misconfigured, match=reason) as caught:
        read_signer(key_of(uri(token, **asked)))  # type: ignore[arg-type]
    assert hint in caught.value.hint


def test_a_wrong_pin_is_refused_and_none_is_shown(token: Path, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text("canary-wrong")
    with pytest.raises(Misconfigured, match="does not take the PIN") as caught:
        read_signer(key_of(uri(tmp_path, "key%20ed25519")))
    assert "canary" not in str(caught.value)
    pin.chmod(0o640)
    with pytest.raises(Misconfigured, match="mode 0640"):
        read_signer(key_of(uri(tmp_path, "key%20ed25519")))
    good = read_signer(key_of(uri(token, "key%20ed25519")))
    assert PIN not in repr(good) + str(good)


def test_a_pair_of_two_keys_is_refused(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a public key was put on the token for another private one."""
    other, sign = key_of(uri(token, "key%20other")), tokens.sign
    monkeypatch.setattr(tokens, "sign", lambda _, pin, message: sign(other, pin, message))
    tokens.public_key.cache_clear()
    with pytest.raises(Misconfigured, match="of another key than the private one"):
        read_signer(key_of(uri(token, "key%20ed25519")))


def test_without_its_package_it_says_what_to_install(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "HAS_PKCS11", False)
    tokens.public_key.cache_clear()
    with pytest.raises(Misconfigured) as caught:
        read_signer(key_of(uri(token, "key%20ed25519")))
    assert "requirements-pkcs11.txt" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pkcs11:", "write pkcs11:token="),
        ("pkcs11:token=a;object=b", "write pkcs11:token="),
        ("pkcs11:token=a;token=b;object=c?module-path=/m", "write pkcs11:token="),
        ("pkcs11:token=a;object=b?module-path=/m&pin-value=1234", "write the PIN into a file"),
        ("pkcs11:token=a;object=b;serial=7?module-path=/m", "serial is not known"),
    ],
)
def test_a_uri_that_names_no_key_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ProofSettings.model_validate({"key": text})


def test_a_token_may_need_no_pin() -> None:
    assert key_of("pkcs11:token=a;object=b?module-path=/m").pin_file is None
    assert key_of("pkcs11:object=b;token=a?pin-source=/p&module-path=/m").pin_file == Path("/p")
