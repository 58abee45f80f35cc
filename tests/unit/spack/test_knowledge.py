"""Reading what the script in the base image prints."""

from __future__ import annotations

import json

import pytest

from image_builder.spack.knowledge import MARK, UnreadableKnowledge, newest_of, read_knowledge
from tests.support.planning import KNOWLEDGE, knowledge

RELEASES = sorted(path.stem for path in KNOWLEDGE.glob("*.txt"))


@pytest.mark.parametrize("release", RELEASES)
def test_what_each_release_says(release: str) -> None:
    knows = knowledge(release)
    mpich, openmpi = knows.package("mpich"), knows.package("openmpi")
    assert mpich is not None and openmpi is not None
    assert mpich.matching("3.4") and not mpich.takes("rocm", "3.4")
    assert mpich.takes("cuda", "3.4") and openmpi.takes("cuda", "4")
    assert knows.mpis["openmpi"] == "" and knows.mpis["cray-mpich"] == "external"
    assert {"spectrum-mpi", "hpcx-mpi", "fujitsu-mpi", "mpt", "cray-mvapich2"} <= {
        name for name, why in knows.mpis.items() if why == "external"
    }
    assert {"zen2", "x86_64_v3", "a64fx"} <= knows.targets
    assert dict(knows.cuda_archs)["80"] == "11.0:" and "gfx90a" in knows.amdgpu_targets
    assert ("gcc", "12:", ":11.8", "") in knows.cuda_compilers
    assert ("gcc", "6:", ":9", "ppc64le:") in knows.cuda_compilers
    assert "mpi" in knows.virtuals and knows.is_unknown("hdf6") and not knows.is_unknown("mpi")


def test_branches_are_told_with_where_they_live() -> None:
    exaca = knowledge("1.2.0").package("exaca")
    assert exaca is not None
    assert exaca.branches["master"] == ("https://github.com/LLNL/ExaCA.git", "master")
    assert "master" in exaca.versions and newest_of(exaca.versions) == "2.0.1"


def test_from_which_version_on_a_gpu_is_taken() -> None:
    mpich = knowledge("1.2.0").package("mpich")
    assert mpich is not None
    assert mpich.first_that_takes("rocm") == "4.1"


def test_what_a_catalogue_has_is_not_judged() -> None:
    knows = knowledge("1.2.0").without(["hdf5", "own"])
    assert knows.package("hdf5") is None
    assert not knows.is_unknown("own") and not knows.is_unknown("hdf5")


@pytest.mark.parametrize(
    "change",
    [{"format": 1}, {"packages": {"a": [["1"]]}}, {"mpis": {"a": "why"}}, {"targets": None}],
)
def test_another_form_is_not_read(change: dict[str, object]) -> None:
    text = (KNOWLEDGE / "1.2.0.txt").read_text("utf-8").removeprefix(MARK)
    fields = {**json.loads(text), **change}
    if "packages" in change:
        fields["packages"] = {"a": "no package"}
    with pytest.raises(UnreadableKnowledge):
        read_knowledge(MARK + json.dumps(fields))


@pytest.mark.parametrize("output", ["", "==> Error: no\n", MARK, f"{MARK}[]", f"{MARK}{{"])
def test_an_answer_that_is_none(output: str) -> None:
    with pytest.raises(UnreadableKnowledge):
        read_knowledge(output)


def test_what_spack_prints_before_is_passed_over() -> None:
    text = (KNOWLEDGE / "1.2.0.txt").read_text("utf-8")
    assert read_knowledge(f"==> Warning: a file\n{text}") == knowledge("1.2.0")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("numpy", ("py-numpy",)),
        ("hdf6", ("hdf5",)),
        ("libhdf5", ("hdf5",)),
        ("hdf5-parallel", ("hdf5",)),
        ("open-mpi", ("openmpi",)),
        ("opnmpi", ("openmpi",)),
        ("intel-mpi-x", ()),
        ("coastri-roms", ()),
        ("x" * 100_000, ()),
        ("", ()),
    ],
)
def test_what_somebody_may_mean(name: str, meant: tuple[str, ...]) -> None:
    assert knowledge("1.2.0").names_like(name) == meant
