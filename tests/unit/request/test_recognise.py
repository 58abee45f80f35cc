"""Machines are recognised from what `cic_cli here` collects there."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from image_builder.errors import InvalidRequest
from image_builder.request.build_request import Machine
from image_builder.request.collected_facts import MAX_BYTES, parse_facts
from image_builder.request.cpu_detection import detected_target
from image_builder.request.machines import load_machines, machine_facts
from image_builder.request.recognise import recognise

CPUINFO = Path(str(resources.files("archspec"))) / "json" / "tests" / "targets"
"""What real machines' /proc/cpuinfo said, in archspec's own test data; a file's name ends with the
target.
"""
FAMILIES = {"flags": "x86_64", "Features": "aarch64", "cpu": "ppc64le", "uarch": "riscv64"}
NAMES = {
    "vendor_id": "vendor_id",
    "flags": "flags",
    "CPU implementer": "implementer",
    "CPU part": "part",
    "Features": "features",
    "cpu": "model",
    "uarch": "uarch",
}
ZEN3 = "AuthenticAMD"
SHIPPED = load_machines()


def cpu_of(text: str) -> tuple[str, dict[str, str]] | None:
    """Return the family and the fields of the first CPU of a text, or None for no Linux machine's."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon and fields:
            break
        if key in NAMES and value:
            fields[key] = value
    family = next((FAMILIES[key] for key in FAMILIES if key in fields), None)
    return family and (family, {NAMES[key]: value for key, value in fields.items()})  # type: ignore[return-value]


def real_cpus() -> list[Any]:
    found = []
    for path in sorted(CPUINFO.glob("linux-*")):
        name = path.name.split("-")[-1]
        cpu = cpu_of(path.read_text("utf-8"))
        if cpu is not None:
            found.append(pytest.param(*cpu, name, id=path.name))
    return found


@pytest.mark.parametrize(("family", "cpu", "name"), real_cpus())
def test_real_cpus_are_recognised(family: str, cpu: dict[str, str], name: str) -> None:
    if family == "ppc64le":  # the data is of big-endian machines, too, which have other names
        name = name.removesuffix("le") + "le"
    assert detected_target(family, cpu) == name
    assert parse_facts(json.dumps({"facts": 1, "machine": family, "cpu": cpu}).encode())


def test_there_are_at_least_twelve() -> None:
    assert len({parameter.values[2] for parameter in real_cpus()}) >= 12


def collected(name: str = "linux-ubuntu20.04-zen3", **changes: Any) -> dict[str, Any]:
    cpu = cpu_of((CPUINFO / name).read_text("utf-8"))
    assert cpu is not None
    return {"facts": 1, "machine": cpu[0], "cpu": cpu[1], **changes}


def facts(**changes: Any) -> bytes:
    return json.dumps(collected(**changes)).encode()


KAROLINA = {
    "kernel": "5.14.0",
    "glibc": "2.34",
    "squashfs": ["zlib", "zstd"],
    "slurm": "23.02.7",
    "pmi": ["none", "pmi2", "pmix", "pmix_v4"],
    "mpi": ["openmpi 4.1.4"],
    "pmix": "4.2.2",
    "libfabric": ["verbs", "tcp;ofi_rxm"],
    "ucx": ["rc_mlx5"],
    "gpu": {"vendor": "nvidia", "driver": "570.124.06", "runtime": "12.8", "architecture": "8.0"},
    "engines": ["apptainer 1.3.6"],
}


def test_a_machine_becomes_a_description_and_facts() -> None:
    found = recognise(parse_facts(facts(**KAROLINA)), SHIPPED)
    assert found.machine == {
        "platform": "linux/amd64",
        "architecture": "zen3",
        "container_engine": "singularity",
        "mpi": "openmpi@4.1",
        "gpu": "cuda@12.8",
        "gpu_arch": "80",
    }
    assert found.nearest[0].name == "karolina-gpu" and found.nearest[0].differences == ()
    assert found.notes == ()
    assert Machine.model_validate(found.machine).target.name == "zen3"
    known = machine_facts(found.facts, {})
    assert (known.driver, known.pmi) == ("570.124.06", ("pmi2", "pmix", "pmix_v4"))
    assert (known.engine, known.mpi) == ("apptainer", "openmpi@4.1")
    assert (known.kernel, known.glibc, known.pmix) == ("5.14.0", "2.34", "4.2.2")
    assert known.squashfs == ("zlib", "zstd") and known.ucx == ("rc_mlx5",)
    assert known.libfabric == ("verbs", "tcp;ofi_rxm")
    without = recognise(parse_facts(facts(**{**KAROLINA, "pmix": None})), SHIPPED)
    assert without.facts["pmix"] == "4"
    many = recognise(parse_facts(facts(ucx=[f"transport{one}" for one in range(60)])), SHIPPED)
    assert machine_facts(many.facts, {}).ucx[-1].startswith("transport")


def test_a_cray_gets_what_can_be_built() -> None:
    gpu = {"vendor": "amd", "runtime": "6.3.4", "architecture": "gfx90a"}
    found = recognise(parse_facts(facts(mpi=["cray-mpich 8.1.29"], gpu=gpu)), SHIPPED)
    assert found.facts["mpi"] == "cray-mpich@8.1"
    assert found.machine["mpi"].startswith("mpich") and found.machine["gpu"] == "hip@6.3"
    assert {one.name for one in found.nearest[:2]} == {"frontier", "lumi-g"}


def test_differences_are_named() -> None:
    found = recognise(parse_facts(facts(mpi=["openmpi 5.0.7"])), SHIPPED)
    first = found.nearest[0]
    assert first.name in ("lumi-c", "perlmutter-cpu") and first.differences[0].fact == "mpi"
    assert len(found.notes) == 3 and all("was found" in note for note in found.notes)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "body"),
        (b"no", "body"),
        (b"[1]", "body"),
        (b"\xff{}", "body"),
        (b'{"facts": 1, ' + b"[" * 60000, "body"),
        (b" " * (MAX_BYTES + 1), "body"),
        (b"x" * 10**6, "body"),
        (facts(facts=2), "facts"),
        (facts(machine="s390x"), "machine"),
        (facts(machine="x86_64\n"), "machine"),
        (facts(machine="aarch64"), "cpu.features"),
        (facts(name="linux-centos7-thunderx2", machine="x86_64"), "cpu.flags"),
        (facts(cpu={"vendor_id": ZEN3, "flags": "fpu avx2"}), "cpu.flags"),
        (facts(cpu={"vendor_id": ZEN3, "flags": "lm sse2\x1b[2J"}), "cpu.flags"),
        (facts(cpu={"vendor_id": ZEN3, "flags": "lm sse2 " + "x" * 8000}), "cpu.flags"),
        (facts(cpu={"vendor_id": ZEN3, "flags": ["lm"]}), "cpu.flags"),
        (facts(hostname="node1"), "hostname"),
        (facts(mpi=["openmpi 4.1; rm -rf /"]), "mpi.0"),
        (facts(pmi=["pmix\n#SBATCH"]), "pmi.0"),
        (facts(mpi=["openmpi 4.1"] * 65), "mpi"),
        (facts(kernel="6.1\n"), "kernel"),
        (facts(gpu={"vendor": "intel"}), "gpu.vendor"),
        (facts(gpu={"vendor": "amd", "architecture": "8.0"}), "gpu.architecture"),
    ],
)
def test_facts_that_no_machine_prints_are_refused(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_facts(raw)
    assert field in [problem.field for problem in caught.value.problems]
    assert all(str(problem).isprintable() and problem.hint for problem in caught.value.problems)
