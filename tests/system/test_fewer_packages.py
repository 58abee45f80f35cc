"""Concretization with fewer packages, against the whole problem: real Spack 1.2 finds the same."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from image_builder.docker.base_image import facts_or_guess
from image_builder.docker.daemon import daemon
from image_builder.spack.releases import SOLVES_WITH_FEWER
from tests.support.site import PROJECT
from tests.support.spack_site import SPACK_BASE, SPACK_ROOT

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        SPACK_ROOT is None, reason="CIC_SPACK_ROOT IS NOT SET: NOTHING IS TESTED WITH A REAL SPACK"
    ),
]

RECIPE = PROJECT / "image_builder" / "recipes" / "1"
PROVEN: Mapping[str, Mapping[str, Any]] = {
    "defaults": {"specs": ["fftw", "lz4", "bzip2", "openmpi@4"]},
    "an older version that is asked for": {"specs": ["lz4@1.9.3"]},
    "values that are asked for": {"specs": ["hdf5+hl~shared", "boost+python"]},
    "values that another package sets": {"specs": ["netcdf-c", "py-numpy"]},
    "values that the configuration sets": {
        "specs": ["hdf5"],
        "packages": {"hdf5": {"require": ["+hl"]}, "zlib-ng": {"variants": "~opt"}},
    },
}
IN_FULL: Mapping[str, Mapping[str, Any]] = {
    "a value has a penalty": {
        "specs": ["bzip2"],
        "packages": {"bzip2": {"conflict": ["+shared"]}},
    },
    "a root's version could be better": {
        "specs": ["lz4"],
        "packages": {"lz4": {"require": ["@:1.9.3"]}},
    },
    "there is no solution": {"specs": ["lz4@9.9"]},
    "each spec has a solution of its own": {"specs": ["lz4"], "concretizer": {"unify": False}},
    "several groups": {"specs": [{"group": "tools", "specs": ["lz4"]}]},
    "what was installed may be taken": {"specs": ["lz4"], "concretizer": {"reuse": True}},
}
INSIDE = """\
mkdir -p /etc/spack /run/cic /opt/cic
printf 'concretizer:\\n  static_analysis: true\\n' >/etc/spack/concretizer.yaml
cp /recipe/* /run/cic
for name in $(cd /cases && ls); do
    mkdir "/$name"
    cp "/cases/$name/spack.yaml" "/$name"
    spack -e "/$name" python /run/cic/fewer_packages.py >"/cases/$name/said" 2>&1
    echo $? >"/cases/$name/status"
    if [ -e "/$name/spack.lock" ]; then mv "/$name/spack.lock" "/cases/$name/fewer.lock"; fi
    spack -e "/$name" concretize >/dev/null 2>&1
    if [ -e "/$name/spack.lock" ]; then mv "/$name/spack.lock" "/cases/$name/spack.lock"; fi
done
chown -R "$OWNER" /cases
"""


def environment(case: Mapping[str, Any]) -> str:
    """The spack.yaml of a case, for a machine with Open MPI."""
    packages = {"all": {"require": ["target=haswell"], "providers": {"mpi": ["openmpi"]}}}
    concretizer = {
        "unify": True,
        "reuse": False,
        "targets": {"granularity": "microarchitectures", "host_compatible": False},
    }
    return yaml.safe_dump(
        {
            "spack": {
                "specs": case["specs"],
                "packages": {**packages, **case.get("packages", {})},
                "concretizer": {**concretizer, **case.get("concretizer", {})},
                "view": False,
            }
        }
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The folders of all cases, after Spack concretized each of them both ways."""
    subprocess.run([str(PROJECT / "scripts" / "spack_base"), SPACK_BASE], check=True)
    root = tmp_path_factory.mktemp("fewer")
    with daemon() as client:
        image = client.images.get(SPACK_BASE)
    facts, _ = facts_or_guess(SPACK_BASE, image.id, "linux/amd64", root / "facts")
    if facts.spack_version is None or facts.spack_version[:2] != SOLVES_WITH_FEWER:
        pytest.skip(f"Spack {facts.spack_version} CONCRETIZES AS IT IS: THIS IS FOR 1.2")
    folders = {}
    for number, (name, case) in enumerate({**PROVEN, **IN_FULL}.items()):
        folders[name] = folder = root / "cases" / f"case{number}"
        folder.mkdir(parents=True)
        (folder / "spack.yaml").write_text(environment(case), "utf-8")
    command = ["docker", "run", "--rm", "--network=none", f"--volume={root / 'cases'}:/cases"]
    command += [f"--env=OWNER={os.getuid()}:{os.getgid()}", f"--volume={RECIPE}:/recipe:ro"]
    subprocess.run([*command, SPACK_BASE, "sh", "-c", INSIDE], check=True)
    return folders


@pytest.mark.parametrize("name", PROVEN)
def test_the_solution_is_that_of_the_whole_problem(results: Mapping[str, Path], name: str) -> None:
    folder = results[name]
    assert (folder / "status").read_text("utf-8") == "0\n", (folder / "said").read_text("utf-8")
    fewer, whole = (
        json.loads((folder / file).read_text("utf-8")) for file in ("fewer.lock", "spack.lock")
    )
    assert fewer["concrete_specs"] == whole["concrete_specs"] and fewer["roots"] == whole["roots"]


@pytest.mark.parametrize("name", IN_FULL)
def test_what_is_not_proven_is_left_to_spack(results: Mapping[str, Path], name: str) -> None:
    folder = results[name]
    assert (folder / "status").read_text("utf-8") == "3\n"
    assert not (folder / "fewer.lock").exists()
    assert (folder / "spack.lock").exists() == (name != "there is no solution")
