"""The first request of the first documentation, from `cic_cli build` to a SIF that runs, on real Spack.

CUDA 10 is a small stand-in of that name, and Debian's Open MPI is taken as one that was built with
it: neither can be fetched here. Which compiler may go with it is real Spack's to say.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon_images import remove_images
from tests.support.site import PROJECT, SEED_REQUEST, make_site, running_service
from tests.support.spack_site import REAL_SPACK, SPACK_BASE, SPACK_ROOT
from tests.system.test_main_job import cic_cli, response, run_sif

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        SPACK_ROOT is None, reason="CIC_SPACK_ROOT IS NOT SET: NOTHING IS TESTED WITH A REAL SPACK"
    ),
]

OPEN_MPI = """\
packages:
  openmpi:
    externals:
      - {spec: openmpi@4.1.4+cuda, prefix: /usr}
    buildable: false
"""


def test_the_seeds_example_becomes_a_sif_that_runs(tmp_path: Path) -> None:
    subprocess.run([str(PROJECT / "scripts" / "spack_base"), SPACK_BASE], check=True)
    mirror = tmp_path / "mirror"
    subprocess.run([str(REAL_SPACK / "source_mirror"), str(mirror)], check=True)
    shutil.copytree(REAL_SPACK / "gpu", tmp_path / "catalogue")
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "packages.yaml").write_text(OPEN_MPI, "utf-8")
    site = make_site(tmp_path).with_environ(
        CIC_BUILD_BASE_IMAGE=SPACK_BASE,
        CIC_BUILD_SPACK_MIRROR=str(mirror),
        CIC_BUILD_SPACK_CFG=str(tmp_path / "cfg"),
        CIC_REPOSITORIES_SOFTWARE_REPOSITORY=str(tmp_path / "catalogue"),
    )
    description = "spack:\n  specs: [gpu-program]\n"
    site.add_step("minimal_workflow", "wordcount", {"eflows4hpc.yaml": description})
    (tmp_path / "request.json").write_text(SEED_REQUEST, "utf-8")
    try:
        with running_service(site) as service:
            build_id = response(cic_cli(service, "build", "request.json", folder=tmp_path))["id"]
            status = service.wait_for(build_id, 3000)
            assert status["status"] == "FINISHED", status
            name = status["filename"]
            assert name == "minimal_workflow_wordcount_rome_openmpi_4_cuda_10_v_latest.sif"
            downloaded = cic_cli(service, "download", name, folder=tmp_path)
            assert downloaded.returncode == 0, downloaded.stderr
    finally:
        remove_images(site)
    lock = json.loads(run_sif(tmp_path / name, "cat", "/opt/cic/spack.lock"))
    (cuda,) = (node for node in lock["concrete_specs"].values() if node["name"] == "cuda")
    assert cuda["parameters"]["allow-unsupported-compilers"], "CUDA 10 takes no GCC 12 else"
    assert run_sif(tmp_path / name, "gpu-program") == "built with CUDA 10.2.89\n"
    assert "Open MPI" in run_sif(tmp_path / name, "mpirun", "--version")
    assert "10.2.89" in run_sif(tmp_path / name, "nvcc")
