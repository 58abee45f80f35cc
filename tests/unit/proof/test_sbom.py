"""The bill of materials as a text: valid by SPDX's own judge, equal for equal images, and complete."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from image_builder.proof import sbom
from image_builder.proof.contents import Contents, SpackPrefix
from image_builder.proof.debian import DebianPackage
from image_builder.proof.licences import Licence
from image_builder.proof.sbom import ImageFacts
from image_builder.proof.wheels import Wheel
from image_builder.spack.lockfile import Graph

FACTS = ImageFacts(
    image_id="site/demo_hello_zen2_nompi_nogpu:latest",
    identity=f"sha256:{'1' * 64}",
    platform="linux/amd64",
    target="zen2",
    recipe="1",
    is_slim=False,
    workflow="demo",
    step_id="hello",
    tree="2" * 40,
    commit="3" * 40,
    source="https://git.example.org/workflows.git",
    base=f"spack_base@sha256:{'4' * 64}",
    base_digest=f"sha256:{'4' * 64}",
    created_s=1_700_000_000,
    tool="test",
)


def node(name: str, *needs: tuple[str, list[str]], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1.0",
        "arch": {"target": "zen2"},
        "parameters": {"shared": True, "static": False, "cuda_arch": ["80", "90"], "cflags": []},
        "dependencies": [
            {"name": other, "hash": hash_of(other), "parameters": {"deptypes": types}}
            for other, types in needs
        ],
        **more,
    }


def hash_of(name: str) -> str:
    return (name * 32)[:32]


NODES = {
    "app": node("app", ("lib", ["build", "link"]), ("tool", ["build"]), ("host", ["build"])),
    "lib": node("lib", ("mpi", ["link"])),
    "tool": node("tool"),
    "mpi": node("mpi", external={"path": "/usr"}),
    "host": node("host", external={"path": "/usr"}),
}
GRAPH = Graph(
    {
        "roots": [{"hash": hash_of("app"), "spec": "app"}],
        "concrete_specs": {hash_of(name): body for name, body in NODES.items()},
    }
)


def contents(*built: str) -> Contents:
    """An image in which these packages of Spack are."""
    recipe = b'    license("MIT")\n    url = "https://x.example.org/app-1.0.tgz"\n'
    return Contents(
        system="debian",
        packages=(
            DebianPackage(
                name="libstdc++6",
                architecture="amd64",
                version="12.2.0-14",
                source="gcc-12",
                source_version="12.2.0-14",
                maintainer="Some Body <some@body.example.org>",
                homepage="no address",
            ),
            DebianPackage(
                name="python3-pip",
                architecture="all",
                version="23.0.1+dfsg-1",
                source="python-pip",
                source_version="23.0.1+dfsg-1",
            ),
        ),
        wheels=(
            Wheel(name="numpy", version="1.26", folder="/opt/spack/app/lib/numpy-1.26.dist-info"),
            Wheel(name="pip", version="23.0.1", folder="/usr/lib/pip-23.0.1.dist-info"),
            Wheel(name="six", version="1.16.0", folder="/opt/six-1.16.0.dist-info", licence="MIT"),
        ),
        prefixes={
            hash_of(name): SpackPrefix(path=f"/opt/spack/{name}", recipe=recipe) for name in built
        },
        wheel_owners={"/usr/lib/pip-23.0.1.dist-info": "python3-pip"},
        licences={
            "libstdc++6": Licence("GPL-3+", "GPL-3.0-or-later"),
            "python3-pip": Licence("public-domain", None),
        },
    )


def document(facts: ImageFacts = FACTS, graph: Graph | None = GRAPH, *built: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(sbom.sbom(facts, graph, contents(*built)))
    return read


def names(read: dict[str, Any], kind: str) -> list[str]:
    return [one["name"] for one in read["packages"] if f"-{kind}-" in one["SPDXID"]]


def relations(read: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Who stands to whom in what, by their names."""
    name = {one["SPDXID"]: one["name"] for one in read["packages"]} | {sbom.DOCUMENT: "document"}
    return {
        (name[one["spdxElementId"]], one["relationshipType"], name[one["relatedSpdxElement"]])
        for one in read["relationships"]
    }


@pytest.mark.parametrize("graph", [GRAPH, None], ids=["spack", "no-spack"])
def test_spdxs_own_judge_finds_nothing_wrong(tmp_path: Path, graph: Graph | None) -> None:
    file = tmp_path / sbom.FILE
    file.write_text(sbom.sbom(FACTS, graph, contents("app", "lib", "tool")), "utf-8")
    assert validate_full_spdx_document(parse_file(str(file))) == []


def test_a_full_image_has_what_was_built_and_what_was_there() -> None:
    read = document(FACTS, GRAPH, "app", "lib", "tool")
    assert names(read, "Spack") == ["app", "host", "lib", "mpi", "tool"]
    assert names(read, "Deb") == ["libstdc++6", "python3-pip"]
    assert names(read, "Wheel") == ["numpy", "pip", "six"]
    app = next(one for one in read["packages"] if one["name"] == "app")
    assert app["downloadLocation"] == "https://x.example.org/app-1.0.tgz"
    assert app["licenseDeclared"] == "MIT" and "homepage" not in app
    assert f"hash {hash_of('app')}; target zen2; prefix /opt/spack/app;" in app["comment"]
    debian = {one["name"]: one for one in read["packages"] if "-Deb-" in one["SPDXID"]}
    assert debian["libstdc++6"]["licenseDeclared"] == "GPL-3.0-or-later"
    assert debian["python3-pip"]["licenseDeclared"] == "NOASSERTION"
    assert debian["python3-pip"]["licenseComments"] == "Stated as: public-domain"
    assert app["comment"].endswith("variants cuda_arch=80,90 +shared ~static")


def test_a_slim_image_has_what_is_left() -> None:
    read = document(dataclasses.replace(FACTS, is_slim=True), GRAPH, "app", "lib")
    assert names(read, "Spack") == ["app", "lib", "mpi"]
    assert "Nodes of spack.lock: 3 of 5" in read["comment"]


def test_it_says_who_contains_what_and_who_needs_what() -> None:
    said = relations(document(FACTS, GRAPH, "app", "lib", "tool"))
    image = FACTS.image_id
    assert {
        ("document", "DESCRIBES", image),
        (image, "DESCENDANT_OF", FACTS.base),
        (image, "CONTAINS", "demo/hello"),
        (image, "CONTAINS", "libstdc++6"),
        (image, "CONTAINS", "six"),
        ("app", "CONTAINS", "numpy"),
        ("python3-pip", "CONTAINS", "pip"),
        ("app", "DEPENDS_ON", "lib"),
        ("lib", "DEPENDS_ON", "mpi"),
        ("tool", "BUILD_DEPENDENCY_OF", "app"),
    } <= said
    assert (image, "CONTAINS", "numpy") not in said and (image, "CONTAINS", "pip") not in said


def test_equal_images_get_equal_bytes_and_others_another_namespace() -> None:
    text = sbom.sbom(FACTS, GRAPH, contents("app", "lib"))
    assert text == sbom.sbom(FACTS, GRAPH, contents("lib", "app"))
    assert "2023-11-14T22:13:20Z" in text
    assert (
        json.loads(text)["documentNamespace"] != document(FACTS, GRAPH, "app")["documentNamespace"]
    )
