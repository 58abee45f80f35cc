"""What a build used: read from what its steps wrote down, kept whole, and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from image_builder.proof import used
from image_builder.proof.materials import (
    BaseImage,
    Catalogue,
    Materials,
    Step,
    UnreadableMaterials,
    read_materials,
)
from image_builder.proof.used import UnreadableUse, debian_of, python_packages
from image_builder.recipe.pins import Deb, PythonPackage
from tests.conftest import PROJECT

PROGRAM = PROJECT / "image_builder" / "recipes" / "1" / "used.py"
SHA256, COMMIT = "a" * 64, "b" * 40


def status(*packages: tuple[str, str]) -> bytes:
    return "\n".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n"
        for name, version in packages
    ).encode()


def deb(name: str, version: str, **fields: Any) -> Deb:
    return Deb(name=name, architecture="amd64", version=version, **fields)


def test_debian_packages_are_told_apart_by_when_they_came() -> None:
    files = {
        used.BASE_STATUS: status(("libc6", "2.36-9"), ("zlib1g", "1:1.2.13")),
        used.STATUS: status(("libc6", "2.36-10"), ("zlib1g", "1:1.2.13"), ("bc", "1:1.07-3+b1")),
        used.DEBS: f"SHA256:{SHA256} bc_1%3a1.07-3+b1_amd64.deb\n".encode(),
    }
    files[used.LATER_STATUS] = files[used.STATUS] + b"\n" + status(("python3-pip", "23.0"))
    found = debian_of(files)
    assert found.base == (deb("libc6", "2.36-9"), deb("zlib1g", "1:1.2.13"))
    assert found.added == (
        deb("bc", "1:1.07-3+b1", file="bc_1%3a1.07-3+b1_amd64.deb", sha256=SHA256),
        deb("libc6", "2.36-10"),
    )
    assert found.later == (deb("python3-pip", "23.0"),)
    assert debian_of({}) == used.Debian()


def report(**entry: Any) -> dict[str, Any]:
    return {"metadata": {"name": "six", "version": "1.16.0"}, **entry}


def taken(entries: list[dict[str, Any]], folder: Path) -> bytes:
    """What the recipe's program writes of pip's report."""
    out = folder / "pip"
    subprocess.run(
        [sys.executable, str(PROGRAM), str(out)],
        input=json.dumps({"version": "1", "install": entries}).encode(),
        check=True,
    )
    return out.read_bytes()


def test_what_pip_took_is_named_by_its_files(tmp_path: Path) -> None:
    archive = {"archive_info": {"hashes": {"sha256": SHA256}}}
    entries = [
        report(
            download_info={"url": "https://me:word@index/a/six-1.16.0.whl#sha256=0", **archive},
            is_direct=False,
        ),
        report(
            download_info={"url": "https://me:word@host/x/six-1.16.0.zip?token=1", **archive},
            metadata={"name": "Direct.One", "version": "2"},
            is_direct=True,
        ),
        report(
            download_info={
                "url": "https://git.example.org/lib",
                "vcs_info": {"vcs": "git", "commit_id": COMMIT, "requested_revision": "main"},
                "subdirectory": "python",
            },
            metadata={"name": "lib", "version": "0.1"},
            is_direct=True,
        ),
        report(
            download_info={
                "url": "file:///tmp/x/old-1.zip",
                "archive_info": {"hash": f"sha256={SHA256}"},
            },
            metadata={"name": "old", "version": "1"},
            is_direct=False,
        ),
        report(
            download_info={"url": "file:///solver/own", "dir_info": {}},
            metadata={"name": "own", "version": "3"},
            is_direct=True,
        ),
    ]
    written = taken(entries, tmp_path)
    assert b"word" not in written and b"token" not in written
    assert python_packages({used.PIP: written}) == (
        PythonPackage(
            name="Direct.One",
            version="2",
            file="six-1.16.0.zip",
            sha256=SHA256,
            url="https://host/x/six-1.16.0.zip",
        ),
        PythonPackage(
            name="lib",
            version="0.1",
            url="https://git.example.org/lib",
            commit=COMMIT,
            subdirectory="python",
        ),
        PythonPackage(name="old", version="1", file="old-1.zip", sha256=SHA256),
        PythonPackage(name="own", version="3"),
        PythonPackage(name="six", version="1.16.0", file="six-1.16.0.whl", sha256=SHA256),
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "7",
        "{" * 2000,
        '{"name": "six"}',
        '{"name": "six\\n--index-url x", "version": "1"}',
        '{"name": "six", "version": "1 --hash=x"}',
        '{"name": "six", "version": "1", "sha256": "short"}',
        '{"name": "six", "version": "1", "file": "../../x.whl"}',
        '{"name": "six", "version": "1", "url": "-rx"}',
        '{"name": "six", "version": "1", "commit": "--upload-pack=x"}',
        '{"name": "six", "version": "1", "more": 1}',
    ],
)
def test_what_a_package_may_have_forged_is_read_by_its_shape(line: str) -> None:
    with pytest.raises(UnreadableUse):
        python_packages({used.PIP: f"{line}\n".encode()})


def test_a_list_of_files_that_apt_did_not_write_is_refused() -> None:
    with pytest.raises(UnreadableUse, match="apt's list"):
        debian_of({used.DEBS: b"SHA256:1 ../x.deb\n"})


def made() -> Materials:
    return Materials(
        image_id="demo_hello:latest",
        identity=f"sha256:{SHA256}",
        recipe="1",
        platform="linux/amd64",
        target="zen2",
        is_slim=False,
        request={"workflow": "demo"},
        step=Step(workflow="demo", step_id="hello", version="latest", tree=COMMIT),
        catalogue=Catalogue(),
        base=BaseImage(reference="base@sha256:0", digest="sha256:0", spack_version=(1, 2)),
        spack_lock={"roots": []},
        debian=used.Debian(added=(deb("bc", "1"),), later=(deb("jq", "2"),)),
        python=(PythonPackage(name="six", version="1"),),
    )


def test_the_document_is_read_back_as_it_was_written() -> None:
    materials = made()
    assert read_materials(materials.text()) == materials
    assert [one.name for one in materials.debian.added + materials.debian.later] == ["bc", "jq"]


@pytest.mark.parametrize("change", [{"format": 2}, {"more": 1}, {"debian": []}])
def test_a_document_of_another_form_is_refused(change: dict[str, Any]) -> None:
    text = json.dumps({**json.loads(made().text()), **change})
    with pytest.raises(UnreadableMaterials):
        read_materials(text)
