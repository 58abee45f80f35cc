"""What images are attested with, and what counts as the checked image."""

from __future__ import annotations

import json
from typing import Any

import pytest

from image_builder.docker import attestations
from image_builder.docker.attestations import Attested, NotAttested
from image_builder.host.cancellation import CancelToken
from image_builder.host.process import Command, Completed
from image_builder.settings import LibrarySettings

IMAGE_ID = "registry.example:5000/group/demo:1"
DIGEST = "sha256:" + "d" * 64
LAYERS = ["sha256:" + "1" * 64, "sha256:" + "2" * 64]


def inspected(**changes: Any) -> str:
    """What buildx tells of an attested image of those layers."""
    found = {
        "manifest": {
            "digest": DIGEST,
            "manifests": [
                {
                    "digest": "sha256:" + "a" * 64,
                    "platform": {"architecture": "amd64", "os": "linux"},
                },
                {
                    "digest": "sha256:" + "b" * 64,
                    "platform": {"architecture": "unknown", "os": "unknown"},
                    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
                },
            ],
        },
        "image": {"rootfs": {"type": "layers", "diff_ids": LAYERS}},
    }
    return json.dumps(found | changes)


def test_an_attested_image_of_the_same_layers() -> None:
    assert attestations.read(inspected(), LAYERS) == DIGEST


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (inspected(manifest={"digest": DIGEST}), "no attestations"),
        (
            inspected(
                manifest={"digest": DIGEST, "manifests": [{"digest": "x", "annotations": None}]}
            ),
            "no attestations",
        ),
        (inspected(image={"rootfs": {"diff_ids": LAYERS[:1]}}), "not the image that was checked"),
        (inspected(image={"rootfs": {"diff_ids": LAYERS[::-1]}}), "not the image that was checked"),
        (inspected(image={"linux/amd64": {}, "linux/arm64": {}}), "cannot be read"),
        (inspected(image=None), "cannot be read"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        (inspected(manifest=["x"]), "cannot be read"),
    ],
)
def test_anything_else_is_not_it(text: str, says: str) -> None:
    with pytest.raises(NotAttested, match=says):
        attestations.read(text, LAYERS)


def test_an_image_that_the_daemon_does_not_have_is_not_it() -> None:
    with pytest.raises(NotAttested):
        attestations.read(inspected(), ())


def test_what_a_push_is_and_names() -> None:
    repository = "registry.example:5000/group/demo"
    assert (
        attestations.output(IMAGE_ID)
        == f"type=image,name={repository},push=true,push-by-digest=true"
    )
    metadata = json.dumps({"containerimage.digest": DIGEST})
    assert attestations.pushed(IMAGE_ID, metadata) == f"{repository}@{DIGEST}"
    for text in ("", "{}", "[]"):
        with pytest.raises(NotAttested):
            attestations.pushed(IMAGE_ID, text)


def test_a_bill_of_materials_is_attested_where_there_is_a_generator(
    library_settings: LibrarySettings,
) -> None:
    build = library_settings.build
    assert attestations.wanted(build) == ("type=provenance,mode=min",)
    more = build.model_copy(update={"sbom_generator": "registry.example/scanner:1"})
    assert attestations.wanted(more) == (
        "type=provenance,mode=min",
        "type=sbom,generator=registry.example/scanner:1",
    )


@pytest.mark.parametrize("generator", ["a,b", "--x", "", "a b", "x;y"])
def test_what_is_no_generator_is_refused(library_settings: LibrarySettings, generator: str) -> None:
    with pytest.raises(ValueError, match="sbom_generator"):
        type(library_settings.build).model_validate(
            library_settings.build.model_dump() | {"sbom_generator": generator}
        )


def test_the_builder_asks_the_registry(library_settings: LibrarySettings) -> None:
    heard: list[Command] = []

    def fake_buildx(command: Command, **_: object) -> Completed:
        heard.append(command)
        return Completed(tail=(), stdout=inspected().encode())

    attested = Attested(
        library_settings.build.model_copy(update={"buildx_builder": "far"}),
        environment={"A": "b"},
        runner=fake_buildx,
        on_line=print,
        cancel=CancelToken(),
    )
    assert attested.require(f"{IMAGE_ID}@{DIGEST}", LAYERS) == DIGEST
    attested.name(f"registry.example:5000/group/demo@{DIGEST}", IMAGE_ID)
    begin = ("docker", "buildx", "imagetools")
    assert [command.argv[:5] for command in heard] == [
        (*begin, "inspect", "--builder=far"),
        (*begin, "create", "--builder=far"),
    ]
    assert heard[1].argv[5:] == (
        "--progress=plain",
        f"--tag={IMAGE_ID}",
        f"registry.example:5000/group/demo@{DIGEST}",
    )
    assert all(command.env == {"A": "b"} for command in heard)
