"""Opening a bundle: whose it is, and that nothing of a bad one reaches Docker.

Docker itself is a fake that remembers what it was asked; the whole way is in
`tests/system/test_bundle.py`.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from image_builder.bundle import images, opening
from image_builder.bundle.manifest import STEP, BadBundle, Manifest
from image_builder.bundle.opening import Opened, Trust, open_bundle
from image_builder.errors import Misconfigured
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Completed
from image_builder.plan import steps
from image_builder.proof.keys import Signer, read_signer
from image_builder.request.build_request import BuildRequest
from image_builder.settings import LibrarySettings
from tests.support.bundles import CONFIG, DIGEST, LAYER, changed, write_parts, written
from tests.support.planning import base, request
from tests.support.recording import Heard
from tests.support.signing import make_key

LOCK = '{"roots": [], "concrete_specs": {}}'


class FakeDocker:
    """Stands for `docker load`: it keeps what the archives held."""

    def __init__(self) -> None:
        self.loaded: list[dict[str, bytes]] = []

    def __call__(self, command: Command, **_: Any) -> Completed:
        assert command.argv[:3] == ("docker", "load", "--input")
        with tarfile.open(command.argv[3]) as archive:
            self.loaded.append(
                {name: archive.extractfile(name).read() for name in archive.getnames()}
            )  # type: ignore[union-attr]
        return Completed(tail=(), stdout=b"Loaded image ID: sha256:" + b"e" * 64 + b"\n")


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    monkeypatch.setattr("image_builder.docker.daemon.tag_image", lambda image, name: None)
    monkeypatch.setattr(
        "image_builder.docker.base_image.probe_base",
        lambda reference, digest, *_, **__: base(reference=reference, digest=digest),
    )
    return FakeDocker()


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return read_signer(make_key(tmp_path_factory.mktemp("keys") / "key.pem", "ed25519"))


def opened(
    bundle: bytes,
    root: Path,
    library: LibrarySettings,
    docker: FakeDocker,
    *,
    asked: BuildRequest | None = None,
    trust: Trust | None = None,
) -> Opened:
    (root / "bundle.tar").write_bytes(bundle)
    return open_bundle(
        root / "bundle.tar",
        asked or request(),
        library,
        trust=trust or Trust(allow_unsigned=True),
        folder=root / "opened",
        observer=Heard(),
        cancel=CancelToken(),
        runner=docker,
    )


def test_inputs_are_those_of_the_bundle(
    tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker
) -> None:
    manifest = write_parts(tmp_path, request(), {"spack.lock": LOCK.encode(), "sources/x": b""})
    got = opened(written(tmp_path, manifest), tmp_path, library_settings, docker)
    inputs, build = got.inputs, got.settings.build
    assert (inputs.identity, inputs.lock, inputs.base.digest) == (manifest.identity, LOCK, DIGEST)
    assert inputs.base.reference == f"registry.test/base:{manifest.base.config}"
    assert steps.read_step(inputs.step, got.settings).description == "apt: [bc]\n"
    assert inputs.step.commit == "c" * 40
    assert steps.step_time_s(request(), inputs.step, got.settings, CancelToken()) == 1_700_000_000
    assert build.spack_mirror_folder == inputs.bundle / "sources"  # type: ignore[operator]
    assert (build.spack_cache, got.settings.registry.url) == ("none", None)


def test_built_packages_are_shared_if_somebody_vouches_for_them(
    tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker, signer: Signer
) -> None:
    manifest = write_parts(tmp_path, request(), {"packages/cic-spack-0/shared/x": b""})
    mine = Trust(keys=(signer.public_pem,), allow_unsigned=True)
    found = []
    for number, bundle in enumerate(
        (written(tmp_path, manifest, signer), written(tmp_path, manifest))
    ):
        (tmp_path / str(number)).mkdir()
        got = opened(bundle, tmp_path / str(number), library_settings, docker, trust=mine)
        found.append(got.settings.build.spack_cache)
    assert found == [str(tmp_path / "0" / "opened" / "bundle" / "packages"), "none"]


def test_an_image_is_loaded_without_any_name(
    tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker
) -> None:
    manifest = write_parts(tmp_path, request())
    opened(written(tmp_path, manifest), tmp_path, library_settings, docker)
    (loaded,) = docker.loaded
    (listed,) = json.loads(loaded.pop("manifest.json"))
    assert listed["RepoTags"] is None
    assert [loaded[listed["Config"]], *(loaded[layer] for layer in listed["Layers"])] == [
        CONFIG,
        LAYER,
    ]
    assert len(loaded) == 2


def test_whose_it_is(
    tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker, signer: Signer
) -> None:
    manifest = write_parts(tmp_path, request())
    signed, unsigned = written(tmp_path, manifest, signer), written(tmp_path, manifest)
    other = read_signer(make_key(tmp_path / "other.pem", "p256")).public_pem
    mine = signer.public_pem
    refused = [
        (unsigned, Trust(), "Nobody has signed"),
        (unsigned, Trust(keys=(mine,)), "Nobody has signed"),
        (signed, Trust(), "no key is named"),
        (signed, Trust(keys=(other,)), "of none of the named keys"),
        (signed, Trust(keys=(other,), allow_unsigned=True), "of none of the named keys"),
        (
            written(tmp_path, changed(manifest, full_because="x"), None),
            Trust(keys=(mine,)),
            "Nobody",
        ),
    ]
    for number, (bundle, trust, said) in enumerate(refused):
        root = tmp_path / str(number)
        root.mkdir()
        with pytest.raises(BadBundle, match=said) as caught:
            opened(bundle, root, library_settings, docker, trust=trust)
        assert caught.value.hint
        assert list((root / "opened" / "bundle").iterdir()) == []
    assert docker.loaded == []
    opened(signed, tmp_path, library_settings, docker, trust=Trust(keys=(other, mine)))
    assert len(docker.loaded) == 1


def test_a_signature_of_another_manifest_is_refused(
    tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker, signer: Signer
) -> None:
    manifest = write_parts(tmp_path, request())
    other = written(tmp_path, changed(manifest, full_because="because"), signer)
    mine = written(tmp_path, manifest, signer)
    text = len(written(tmp_path, manifest)) - len(written(tmp_path, changed(manifest, files=[])))
    assert text > 0
    edited = other.replace(b'"full_because": "because"', b'"full_because": "BECAUSE"')
    assert edited != other != mine
    with pytest.raises(BadBundle, match="of none of the named keys"):
        opened(edited, tmp_path, library_settings, docker, trust=Trust(keys=(signer.public_pem,)))


def broken(manifest: Manifest) -> list[tuple[Manifest, str]]:
    image = manifest.base
    without_step = [file for file in manifest.files if file.path != STEP]
    return [
        (changed(manifest, identity=f"sha256:{'1' * 64}"), "identity is not that of what it holds"),
        (changed(manifest, branch_commits={"x@main": "1" * 40}), "identity"),
        (
            changed(manifest, base={**image.model_dump(), "digest": f"sha256:{'2' * 64}"}),
            "identity",
        ),
        (changed(manifest, step={"tree": "1" * 40}), "is not what its manifest pins"),
        (changed(manifest, catalogue={"packages_tree": "1" * 40}), "lacks its catalogue.tar"),
        (changed(manifest, files=[file.model_dump() for file in without_step]), "lacks its step"),
        (changed(manifest, base={**image.model_dump(), "layers": ["3" * 64]}), "lacks a part of"),
        (
            changed(manifest, base={**image.model_dump(), "config": image.layers[0]}),
            "base image is no image",
        ),
    ]


@pytest.mark.parametrize("number", range(8))
def test_what_does_not_go_together_is_refused(
    number: int, tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker
) -> None:
    edited, said = broken(write_parts(tmp_path, request()))[number]
    with pytest.raises(BadBundle, match=said):
        opened(written(tmp_path, edited), tmp_path, library_settings, docker)
    assert docker.loaded == []


@pytest.mark.parametrize(
    "lock", [b"", b"\xff", b"[]", b"{}", b"[" * 9999, b'{"roots": [{"hash": "a"}]}']
)
def test_a_lockfile_that_is_none_is_refused(
    lock: bytes, tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker
) -> None:
    manifest = write_parts(tmp_path, request(), {"spack.lock": lock})
    with pytest.raises(BadBundle, match=r"spack\.lock is none"):
        opened(written(tmp_path, manifest), tmp_path, library_settings, docker)
    assert docker.loaded == []


def test_an_image_of_another_platform_is_refused(
    tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker
) -> None:
    asked = request(platform="linux/arm64", architecture="a64fx")
    manifest = write_parts(tmp_path, asked)
    with pytest.raises(BadBundle, match="base image is for linux/amd64"):
        opened(written(tmp_path, manifest), tmp_path, library_settings, docker, asked=asked)
    assert docker.loaded == []


@pytest.mark.parametrize("evil", ["../outside", "/etc/passwd", "eflows4hpc.yaml/.."])
def test_an_evil_step_is_not_unpacked(
    evil: str, tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker
) -> None:
    manifest = write_parts(tmp_path, request())
    with tarfile.open(tmp_path / "parts" / STEP, "w") as packed:
        packed.addfile(tarfile.TarInfo(evil))
    size = (tmp_path / "parts" / STEP).stat().st_size
    entry = opening.archive.file_of(STEP, tmp_path / "parts" / STEP)
    assert entry.size == size
    files = [entry if file.path == STEP else file for file in manifest.files]
    edited = changed(manifest, files=[file.model_dump() for file in files])
    with pytest.raises(BadBundle, match=r"step\.tar"):
        opened(written(tmp_path, edited), tmp_path, library_settings, docker)
    assert not (tmp_path / "outside").exists()


def test_a_builder_that_sees_no_local_images_is_refused(
    tmp_path: Path, library_settings: LibrarySettings
) -> None:
    build = library_settings.build.model_copy(update={"buildx_builder": "remote"})
    library = library_settings.model_copy(update={"build": build})

    def runner(command: Command, **_: Any) -> Completed:
        return Completed(tail=(), stdout=b"Driver: docker-container\n")

    with pytest.raises(Misconfigured, match="own builder"):
        open_bundle(
            tmp_path / "bundle.tar",
            request(),
            library,
            trust=Trust(),
            folder=tmp_path / "opened",
            observer=Heard(),
            cancel=CancelToken(),
            runner=runner,
        )


def test_what_docker_loads_has_to_be_said(
    tmp_path: Path, library_settings: LibrarySettings, docker: FakeDocker
) -> None:
    manifest = write_parts(tmp_path, request())
    opened(written(tmp_path, manifest), tmp_path, library_settings, docker)
    assert images.blobs(manifest.base) == [
        f"images/{manifest.base.config}",
        *(f"images/{layer}" for layer in manifest.base.layers),
    ]
