"""The list of what is installed, read back from the documents that this project writes."""

from __future__ import annotations

import json

import pytest

from image_builder.proof import installed, sbom
from image_builder.proof.installed import DEBIAN, PYTHON, SPACK, Package
from tests.unit.proof.test_sbom import FACTS, GRAPH, contents, hash_of

BILL = sbom.sbom(FACTS, GRAPH, contents("app", "lib"))


def found() -> dict[tuple[str, str], Package]:
    packages = installed.packages_of_sbom(BILL)
    assert packages is not None
    assert [one.name.lower() for one in packages] == sorted(one.name.lower() for one in packages)
    return {(one.name, one.kind): one for one in packages}


def test_every_package_of_a_bill_of_materials_is_listed_with_its_kind() -> None:
    packages = found()
    assert set(packages) == {
        ("app", SPACK),
        ("host", SPACK),
        ("lib", SPACK),
        ("libstdc++6", DEBIAN),
        ("mpi", SPACK),
        ("numpy", PYTHON),
        ("pip", PYTHON),
        ("python3-pip", DEBIAN),
        ("six", PYTHON),
    }
    assert packages["app", SPACK].licence == "MIT"
    assert packages["app", SPACK].hash == hash_of("app")
    assert packages["libstdc++6", DEBIAN].licence == "GPL-3.0-or-later"
    assert packages["python3-pip", DEBIAN].licence == "public-domain"
    assert packages["numpy", PYTHON].licence is None
    assert packages["six", PYTHON].version == "1.16.0"


def test_a_licence_in_a_packages_own_words_is_shown() -> None:
    bill = BILL.replace('"licenseDeclared": "MIT"', '"licenseDeclared": "NOASSERTION"', 1)
    bill = bill.replace(
        '"filesAnalyzed": false', '"filesAnalyzed": false, "licenseComments": "Stated as: own"'
    )
    packages = installed.packages_of_sbom(bill)
    assert packages is not None and "own" in {one.licence for one in packages}


def test_a_lockfile_tells_names_and_versions() -> None:
    lock = {
        "roots": [{"hash": "a", "spec": "zlib"}],
        "concrete_specs": {
            "a": {"name": "zlib", "version": "1.3", "arch": {"target": "zen2"}},
        },
    }
    assert installed.packages_of_lock(json.dumps(lock)) == [
        Package(name="zlib", version="1.3", kind=SPACK, hash="a")
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"packages": [1]}', '{"packages": null}', "[" * 10_000]
)
def test_a_text_that_is_no_document_tells_nothing(text: str) -> None:
    assert installed.packages_of_sbom(text) is None
    assert installed.packages_of_lock(text) is None


def test_a_text_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "MAX_BYTES", len(BILL) - 1)
    assert installed.packages_of_sbom(BILL) is None


@pytest.mark.parametrize(
    ("search", "names"),
    [("mit", {"app", "lib", "six"}), ("python six", {"six"}), ("APP", {"app"}), ("none", set())],
)
def test_a_search_finds_what_has_every_word(search: str, names: set[str]) -> None:
    words = search.lower().split()
    assert {one.name for one in found().values() if one.has(words)} == names
