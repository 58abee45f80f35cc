"""The machine catalogue, and requests that name a machine of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from image_builder.audit.compatibility import check
from image_builder.errors import InvalidRequest, Misconfigured
from image_builder.request import mpi_gpu
from image_builder.request.build_request import Machine
from image_builder.request.machines import MachineEntry, expand, load_machines, machine_facts
from image_builder.request.parsing import parse_request

SHIPPED = load_machines()
OWN = """
machines:
  lumi-c: {platform: linux/amd64, architecture: zen3, mpi: mpich@4}
  nord3: null
  Lab:
    platform: linux/arm64
    architecture: grace
    gpu: cuda@12.8
    driver: "570.26"
    source: [our own]
"""


def request_for(machine: object, **fields: Any) -> dict[str, Any]:
    return {"machine": machine, "workflow": "w", "step_id": "s", **fields}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_machine_can_be_built_for_and_says_where_it_is_from(name: str) -> None:
    machine = parse_request(request_for(name), machines=SHIPPED).machine
    assert machine.target.name != machine.target.family
    assert not machine.mpi or mpi_gpu.mpi_of(machine, (1, 1)) is not None
    assert not machine.gpu or mpi_gpu.gpu_of(machine) is not None
    assert SHIPPED[name].title and all("https://" in source for source in SHIPPED[name].source)


def test_a_dozen_public_systems_with_their_mpi_are_shipped() -> None:
    assert sum(1 for entry in SHIPPED.values() if entry.mpi or entry.site_mpi) >= 12
    assert {"marenostrum5-gpp", "lumi-g", "leonardo-booster", "jupiter-booster", "fugaku"} <= set(
        SHIPPED
    )


@pytest.mark.parametrize(
    "name", [name for name, entry in SHIPPED.items() if entry.mpi and entry.site_mpi]
)
def test_images_are_built_with_an_mpi_that_the_site_understands(name: str) -> None:
    entry = SHIPPED[name]
    built, own = (
        mpi_gpu.mpi_of(Machine.model_validate({**entry.request_fields(), "mpi": mpi}), None)
        for mpi in (entry.mpi, entry.site_mpi)
    )
    assert built is not None and own is not None and built.family == own.family


@pytest.mark.parametrize("machine", ["lumi-g", "LUMI-G", {"name": "lumi-g"}])
def test_a_request_may_name_a_machine(machine: object) -> None:
    found = parse_request(request_for(machine), machines=SHIPPED).machine
    assert (found.platform, found.target.name, found.mpi, found.gpu, found.gpu_arch) == (
        "linux/amd64",
        "zen3",
        "mpich@3.4",
        "hip@6.3",
        "mi250x",
    )


def test_what_is_written_beside_the_name_goes_first() -> None:
    found = parse_request(
        request_for({"name": "leonardo-booster", "mpi": "openmpi@5", "container_engine": "docker"}),
        machines=SHIPPED,
    ).machine
    assert (found.mpi, found.container_engine, found.gpu) == ("openmpi@5", "docker", "cuda@12.2")


@pytest.mark.parametrize("gpu", [None, "none", "hip@6"])
def test_another_gpu_does_not_keep_the_architecture_of_the_first(gpu: str | None) -> None:
    found = parse_request(
        request_for({"name": "leonardo-booster", "gpu": gpu}), machines=SHIPPED
    ).machine
    assert found.gpu_arch is None
    kept = parse_request(
        request_for({"name": "leonardo-booster", "gpu": "cuda@11", "gpu_arch": "80"}),
        machines=SHIPPED,
    ).machine
    assert kept.gpu_arch == "80"


def test_a_described_machine_is_left_alone() -> None:
    fields = request_for({"platform": "linux/amd64", "container_engine": "docker"})
    assert expand(fields, SHIPPED) == fields
    assert expand({"workflow": "w"}, SHIPPED) == {"workflow": "w"}


@pytest.mark.parametrize(
    ("machine", "field"),
    [
        ("lumi", "machine"),
        ({"name": "lumig", "mpi": "mpich"}, "machine.name"),
        ({"name": 7}, "machine.name"),
    ],
)
def test_an_unknown_machine_is_told_with_every_other_problem(machine: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(request_for(machine, step_id="../up"), machines=SHIPPED)
    assert [problem.field for problem in caught.value.problems] == [field, "step_id"]
    if machine != {"name": 7}:
        assert "did you mean lumi-" in caught.value.problems[0].hint


def test_without_a_catalogue_a_name_is_no_machine() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(request_for("lumi-g"))
    assert caught.value.problems[0].field == "machine"


def test_an_operators_file_adds_replaces_and_removes(tmp_path: Path) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text(OWN, "utf-8")
    machines = load_machines(file)
    assert "nord3" not in machines and "lumi-g" in machines
    assert machines["lumi-c"].mpi == "mpich@4" and machines["lumi-c"].site_mpi is None
    assert machines["lab"].facts("lab").driver == "570.26"
    file.write_text("shipped: false\n" + OWN, "utf-8")
    assert set(load_machines(file)) == {"lab", "lumi-c"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("machines: [1]", "has no `machines`"),
        ("machines: {a: [}", "not valid YAML"),
        (
            "machines: {a: {platform: linux/amd64, driver: 570.100}}",
            "write a text in double quotes",
        ),
        ("machines: {a: {platform: linux/amd64, architecture: zenn2}}", "machines.a"),
        (
            "machines: {a: {platform: linux/amd64, arch: zen2}}",
            "machines.a.arch: is not a known field",
        ),
        (
            "machines: {a: {platform: linux/amd64, mpi: 'openmpi;rm'}, b: {}}",
            "machines.b.platform: is missing",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_problems(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(Misconfigured) as caught:
        load_machines(file)
    assert says in str(caught.value) and "machines.yaml" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured):
        load_machines(tmp_path / "none.yaml")


def test_a_catalogue_entry_is_what_an_image_is_checked_against() -> None:
    entry: MachineEntry = SHIPPED["lumi-g"]
    image = {
        "cic.platform": "linux/amd64",
        "cic.target": "zen3",
        "cic.mpi.family": "mpich",
        "cic.mpi.name": "mpich",
        "cic.mpi.version": "3.4.3",
        "cic.gpu.runtime": "hip",
        "cic.gpu.version": "6.3.0",
        "cic.gpu.arch": "gfx90a",
    }
    report = check(image, entry.facts("lumi-g"))
    assert report.ok
    assert report.run_command == "srun --mpi=pmi2 -n 2 singularity exec --rocm image.sif <program>"
    assert not check(
        image | {"cic.mpi.family": "openmpi", "cic.mpi.name": "openmpi"}, entry.facts("lumi-g")
    ).ok


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"launcher": "srun 'x"}, "launcher"),
        ({"launcher": " "}, "launcher"),
        ({"launcher": "srun\n#SBATCH --uid=0"}, "launcher"),
        ({"architecture": "zen2\x1b[2J"}, "architecture"),
        ({"pmi": "pmix; rm"}, "pmi"),
        ({"pmi": "p" * 201}, "pmi"),
        ({"engine": "rkt"}, "engine"),
        ({"kernel": "six"}, "kernel"),
        ({"glibc": "2.31-x"}, "glibc"),
        ({"pmix": "v4"}, "pmix"),
        ({"squashfs": "zstd;rm"}, "squashfs"),
        ({"libfabric": "cxi $(id)"}, "libfabric"),
        ({"ucx": "rc'"}, "ucx"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_facts_that_no_machine_has_are_refused_by_name(given: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        machine_facts({"platform": "linux/amd64", **given}, SHIPPED)
    assert [problem.field for problem in caught.value.problems] == [field]
    assert caught.value.problems[0].hint


def test_what_follows_from_a_replaced_fact_goes_with_it() -> None:
    eiger = machine_facts({"machine": "alps-eiger"}, SHIPPED)
    assert (eiger.engine, eiger.pmi, eiger.build_mpi) == ("edf", ("pmi2", "pmix"), "mpich@4")
    other = {"machine": "alps-eiger", "launcher": "srun", "mpi": "openmpi@5", "engine": "sarus"}
    facts = machine_facts(other, SHIPPED)
    assert (facts.engine, facts.pmi, facts.build_mpi, facts.fabric) == ("sarus", (), None, None)
    listed = machine_facts({"platform": "linux/amd64", "pmi": "none, pmi2 pmix_v4"}, SHIPPED)
    assert listed.pmi == ("none", "pmi2", "pmix_v4")


def test_every_site_engine_and_fabric_has_a_source() -> None:
    for name, entry in SHIPPED.items():
        if entry.site_engine or entry.fabric:
            assert any("ontainer" in one or "ingularity" in one for one in entry.source), name
