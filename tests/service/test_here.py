"""`cic_cli here` on simulated machines, and what the service makes of its facts."""

from __future__ import annotations

import html
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from image_builder.request.collected_facts import MAX_BYTES, parse_facts
from image_builder.request.machines import load_machines
from image_builder.request.recognise import recognise
from service.db import tables
from service.db.database import reading
from tests.conftest import PROJECT
from tests.service.conftest import Api
from tests.service.test_web import Visitor
from tests.unit.request.test_recognise import CPUINFO, cpu_of, real_cpus

TOOLS = {
    "srun": """[ "$1" = --version ] && echo "slurm 23.02.7" && exit
printf 'MPI plugin types are...\\n\\tnone\\n\\tpmi2\\n\\tpmix\\n' >&2
echo 'specific pmix plugin versions available: pmix_v3,pmix_v4' >&2""",
    "mpirun": "echo 'mpirun (Open MPI) 4.1.4'; echo 'Report bugs to ada@login7.example.org'",
    "pmix_info": "echo 'PMIx: 4.2.2'; echo 'Configured by: ada'",
    "fi_info": "printf 'provider: verbs\\n    fabric: IB-0xfe80\\nprovider: tcp;ofi_rxm\\nprovider: verbs\\n'",
    "ucx_info": "printf '#      Transport: rc_mlx5\\n#         Device: mlx5_0:1\\n'",
    "nvidia-smi": """case "$1" in
--query-gpu*) printf '570.124.06, 8.0\\n570.124.06, 8.0\\n' ;;
*) echo '| NVIDIA-SMI 570.124.06   Driver Version: 570.124.06   CUDA Version: 12.8     |' ;;
esac""",
    "singularity": "echo 'apptainer version 1.3.6-1.el9'",
    "apptainer": "echo 'apptainer version 1.3.6-1.el9'",
}


class Host:
    """A simulated machine: a kind of processor, a /proc/cpuinfo and the site's tools."""

    def __init__(self, folder: Path, family: str, cpuinfo: str, tools: dict[str, str]) -> None:
        place = folder / "bin"
        place.mkdir()
        uname = f'[ "$1" = -m ] && echo {family} || echo 5.14.0-427.el9.login7'
        for name, text in {"uname": uname, **tools}.items():
            (place / name).write_text(f"#!/bin/sh\n{text}\n")
            (place / name).chmod(0o755)
        for name in ("head", "timeout", "bash", "getconf"):
            (place / name).symlink_to(f"/usr/bin/{name}")
        (folder / "cpuinfo").write_text(cpuinfo)
        self.environment = {
            "PATH": str(place),
            "CIC_CPUINFO": str(folder / "cpuinfo"),
            "HOME": "/home/ada",
            "USER": "ada",
            "SLURM_JOB_ID": "4711",
        }

    def here(self, *options: str, **environment: str) -> bytes:
        ran = subprocess.run(
            ["/usr/bin/bash", str(PROJECT / "cic_cli"), "here", *options],
            env=self.environment | environment,
            capture_output=True,
            check=True,
        )
        assert ran.stderr == b"", ran.stderr
        return ran.stdout


def karolina(folder: Path) -> Host:
    text = (CPUINFO / "linux-ubuntu20.04-zen3").read_text("utf-8")
    return Host(folder, "x86_64", text * 4, TOOLS)


def test_all_facts_of_a_machine_with_every_tool(tmp_path: Path) -> None:
    text = karolina(tmp_path).here()
    facts = json.loads(text)
    assert facts.pop("cpu") == cpu_of((CPUINFO / "linux-ubuntu20.04-zen3").read_text("utf-8"))[1]  # type: ignore[index]
    assert facts.pop("glibc")
    assert facts == {
        "facts": 1,
        "machine": "x86_64",
        "kernel": "5.14.0",
        "slurm": "23.02.7",
        "pmi": ["none", "pmi2", "pmix", "pmix_v3", "pmix_v4"],
        "mpi": ["openmpi 4.1.4"],
        "pmix": "4.2.2",
        "libfabric": ["verbs", "tcp;ofi_rxm"],
        "ucx": ["rc_mlx5"],
        "gpu": {
            "vendor": "nvidia",
            "driver": "570.124.06",
            "architecture": "8.0",
            "runtime": "12.8",
        },
        "engines": ["singularity 1.3.6", "apptainer 1.3.6"],
    }
    found = recognise(parse_facts(text), load_machines())
    assert found.nearest[0].name == "karolina-gpu" and found.facts["pmi"].startswith("pmi2,pmix")


def test_nothing_personal_is_printed_and_show_says_what_is(tmp_path: Path) -> None:
    shown = karolina(tmp_path).here("--show").decode()
    explained, _, text = shown.partition("\n{\n")
    for word in ("ada", "login7", "example", "4711", "0xfe80", "mlx5_0", "el9", str(tmp_path)):
        assert word not in text
    for name in json.loads("{" + text):
        assert name == "facts" or name in explained


@pytest.mark.parametrize(
    ("tools", "environment", "mpi"),
    [
        (
            {
                "mpirun": "printf 'HYDRA build details:\\n    Version:   4.0.2\\n    Prefix: /home/ada\\n'"
            },
            {},
            "mpich 4.0.2",
        ),
        ({"mpichversion": "printf 'MPICH Version:      \\t3.4.3\\n'"}, {}, "mpich 3.4.3"),
        ({"mpichversion": "echo 'MVAPICH Version: 3.0'"}, {}, "mvapich2 3.0"),
        (
            {"mpirun": "echo 'Intel(R) MPI Library for Linux* OS, Version 2021.10 Build 20230619'"},
            {},
            "intel-oneapi-mpi 2021.10",
        ),
        ({}, {"CRAY_MPICH_VERSION": "8.1.29"}, "cray-mpich 8.1.29"),
    ],
)
def test_mpis_are_known_by_what_they_say(
    tmp_path: Path, tools: dict[str, str], environment: dict[str, str], mpi: str
) -> None:
    host = Host(tmp_path, "x86_64", (CPUINFO / "linux-rhel7-zen").read_text("utf-8"), tools)
    facts = parse_facts(host.here(**environment))
    assert facts.mpi == (mpi,)


@pytest.mark.parametrize("more", ["", "; /usr/bin/seq 100000"], ids=["short", "long"])
def test_a_gpu_of_amd(tmp_path: Path, more: str) -> None:
    """A tool that says more than is read is one like others."""
    (tmp_path / ".info").mkdir()
    (tmp_path / ".info" / "version").write_text("6.3.4-76\n")
    tools = {"rocminfo": f"echo '  Name:                    gfx90a'{more}"}
    host = Host(tmp_path, "x86_64", (CPUINFO / "linux-rhel7-zen").read_text("utf-8"), tools)
    facts = parse_facts(host.here(ROCM_PATH=str(tmp_path)))
    assert facts.gpu is not None
    assert (facts.gpu.vendor, facts.gpu.runtime, facts.gpu.architecture) == (
        "amd",
        "6.3.4",
        "gfx90a",
    )


def test_tools_that_hang_flood_or_send_control_characters_do_no_harm(tmp_path: Path) -> None:
    tools = {
        "srun": "sleep 60",
        "fi_info": "/usr/bin/yes 'provider: tcp'",
        "mpirun": "printf '\\033[2J(Open MPI) 4.1.4\"\\\\'",
        "singularity": "printf '\\a$(touch pwned)'; exit 3",
        "sleep": 'exec /usr/bin/sleep "$1"',
    }
    host = Host(tmp_path, "x86_64", (CPUINFO / "linux-rhel7-zen").read_text("utf-8"), tools)
    script = tmp_path / "cic_cli"
    text = (PROJECT / "cic_cli").read_text("utf-8")
    script.write_text(text.replace("TOOL_SECONDS=10", "TOOL_SECONDS=1"))
    ran = subprocess.run(
        ["/usr/bin/bash", str(script), "here"],
        env=host.environment,
        capture_output=True,
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    facts = parse_facts(ran.stdout)
    assert (facts.slurm, facts.libfabric, facts.mpi) == (None, ("tcp",), ("openmpi 4.1.4",))
    assert facts.engines == ("singularity",) and not (tmp_path / "pwned").exists()


FILES = [parameter.id for parameter in real_cpus()]


@pytest.mark.parametrize("name", FILES)
def test_every_real_cpu_is_recognised_by_the_whole_way(tmp_path: Path, name: str) -> None:
    text = (CPUINFO / name).read_text("utf-8")
    cpu = cpu_of(text)
    assert cpu is not None
    host = Host(tmp_path, cpu[0], f"{text}\n\n{text}", {})
    target = name.split("-")[-1]
    found = recognise(parse_facts(host.here()), {}).facts["architecture"]
    assert found.removesuffix("le") == target.removesuffix("le")


def facts(**changes: Any) -> dict[str, Any]:
    family, cpu = cpu_of((CPUINFO / "linux-ubuntu20.04-zen3").read_text("utf-8"))  # type: ignore[misc]
    return {"facts": 1, "machine": family, "cpu": cpu, **changes}


def test_the_service_recognises_a_machine_and_keeps_nothing(app: Flask, ada: Api) -> None:
    answer = ada("POST", "/machine/recognise", json=facts(mpi=["openmpi 4.1.4"]))
    assert answer.status_code == 200, answer.text
    assert answer.json["machine"]["architecture"] == "zen3"
    assert answer.json["nearest"][0]["differences"] is not None
    with reading(Visitor(app, "ada").engine) as connection:
        kept = connection.execute(tables.BUILDS.select()).all()
    assert kept == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no JSON", 400),
        (b"[" * 1000, 400),
        (b"{" + b" " * MAX_BYTES + b"}", 400),
        (b"\x00" * 10**6, 400),
        (json.dumps(facts(machine="aarch64")).encode(), 400),
        (json.dumps(facts(mpi=["openmpi 4\u001b[2J"])).encode(), 400),
        (json.dumps(facts(cpu={"vendor_id": "A", "flags": "avx2"})).encode(), 400),
        (b"x" * 3 * 10**6, 413),
    ],
)
def test_facts_that_no_machine_sends_are_refused(ada: Api, body: bytes, status: int) -> None:
    answer = ada("POST", "/machine/recognise", data=body)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert all(error["field"] and error["hint"] for error in answer.json["errors"])
    assert "\x1b" not in answer.text


def test_facts_may_be_pasted_on_the_page(app: Flask) -> None:
    visitor = Visitor(app, "ada")
    good = visitor.post(
        "/machines", {"collected": json.dumps(facts(), indent=2).replace("\n", "\r\n")}
    )
    page = html.unescape(good.text)
    assert "It has a zen3" in page and '"architecture": "zen3"' in page
    assert "Machines of the catalogue that are most like it" in page
    bad = html.unescape(visitor.post("/machines", {"collected": "<script>"}).text)
    assert "it is not valid JSON" in bad and "It has a" not in bad
