"""How plans are compared with real Spack, without one."""

from __future__ import annotations

import yaml

from benchmarks.agreement import Row, shares, summary
from benchmarks.agreement_cases import Case, inputs, machines, on_machines
from tests.support.planning import base, knowledge


def case(name: str, refusal: str = "", why: str = "") -> Case:
    return Case(name=name, spack_yaml="", is_accepted=not refusal, refusal=refusal, why_refused=why)


def test_a_yes_that_spack_cannot_satisfy_and_a_refusal_that_it_can_disagree() -> None:
    rows = [
        Row(case=case("lumi-c--zlib"), concretizes=True),
        Row(case=case("lumi-c--hdf5"), concretizes=False, said="no such thing"),
        Row(case=case("input--a", "too new"), concretizes=False),
        Row(case=case("input--b", "too old"), concretizes=True),
        Row(case=case("input--c", "a plugin", "the flag runs one"), concretizes=True),
        Row(case=case("input--d", "not YAML"), concretizes=None),
    ]
    assert [row.agrees for row in rows] == [True, False, True, False, True, True]
    assert "2 plans that say yes, 1 concretize; of 3 refusals, 2 " in shares(rows)
    page = summary({"0.23.1": rows, "1.2.0": rows[:1]})
    assert (
        "| lumi-c, zlib | yes | yes |" in page and "| input, b | **refused, wrongly** |  |" in page
    )
    assert "- 0.23.1, lumi-c, hdf5: no such thing" in page
    assert "| input, a | 0.23.1 | too new |" in page


def test_what_is_refused_can_be_asked_all_the_same() -> None:
    """A machine that the release cannot serve, and an input that no plan takes."""
    old = base((0, 23, 1))
    lumi = machines("linux/amd64", ["lumi-g"])
    refused = list(on_machines(lumi, old, knowledge("0.23.1")))
    assert refused and all("hip@6.3" in (one.spack_yaml or "") for one in refused)
    assert not any(one.is_accepted for one in refused)
    planned = {one.name: one for one in inputs(old, knowledge("0.23.1"))}
    flags = planned["input--flags-bypass"]
    assert not flags.is_accepted and flags.why_refused
    assert yaml.safe_load(flags.spack_yaml or "")["spack"]["specs"] == [
        "hdf5 cflags=-fplugin=/s/evil.so cflags=-O3"
    ]
    assert planned["input--no-spack-key"].spack_yaml is None
