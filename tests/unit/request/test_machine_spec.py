"""Specs of MPIs and GPU runtimes as people write them, and what they are told to write."""

from __future__ import annotations

import pytest

from image_builder.errors import InvalidRequest
from image_builder.request.machine_spec import problem
from image_builder.request.parsing import parse_request


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("OpenMPI 4", "write openmpi@4"),
        ("Cray MPICH 8", "write mpich@3.4, or cray-mpich@8 where the site has it as an external"),
        ("Spectrum MPI", "write openmpi@4, or spectrum-mpi where the site has it as an external"),
        ("Open MPI 4.1.6", "write openmpi@4.1.6"),
        ("openmpi v4", "write openmpi@4"),
        ("MPICH 3.4.3", "write mpich@3.4.3"),
        ("CUDA 12.2", "write cuda@12.2"),
        ("CUDA Toolkit 12.2", "write cuda@12.2"),
        ("ROCm 6", "write rocm@6"),
        ("openmpi@", "write a version as in openmpi@4, or openmpi alone"),
        ("openmpi@4,", "write a version as in openmpi@4, or openmpi alone"),
        ("openmpi@4 openmpi@5", "write one, such as openmpi@4"),
        ("openmpi@4 5", "write one, such as openmpi@4"),
        ("openmpi@4@5", "write one, such as openmpi@4"),
        ("cuda@12,rocm@6", "write one, such as cuda@12"),
        ("cuda@12 rocm@6", "write one, such as cuda@12"),
        ("cuda+cuda_arch=80", "write the architecture into gpu_arch: 80"),
        ("hip@6 amdgpu_target=gfx90a", "write the architecture into gpu_arch: gfx90a"),
        ("openmpi+", "write +name or ~name"),
        ("openmpi fabrics=", "write fabrics=value"),
        ("openmpi@4 ^hwloc@2", "write openmpi@4"),
        ("openmpi@4 target=zen2", "leave it out: platform and architecture say it"),
        ("openmpi@4%", "write one such as %gcc, or leave it out"),
        ("openmpi@4/abc", "write one as in openmpi@4"),
        ("openmpi@ 4", "write openmpi@4"),
        ("Intel MPI 2021", "write intel-oneapi-mpi@2021"),
    ],
)
def test_what_to_write(text: str, write: str) -> None:
    found = problem(text)
    assert found is not None
    assert found[1] == write


@pytest.mark.parametrize(
    "text",
    [
        "openmpi",
        "openmpi@4",
        "openmpi@=4.1.6",
        "openmpi@4:5",
        "openmpi@:4",
        "openmpi@4.1,5",
        "openmpi@main",
        "openmpi@4~cuda",
        "openmpi@4 -cuda",
        "openmpi@4 +cuda fabrics=ucx schedulers==slurm",
        "openmpi@4%gcc@12",
        "cuda@12.2",
    ],
)
def test_what_spack_reads_is_left_alone(text: str) -> None:
    assert problem(text) is None


def test_a_request_is_refused_with_all_of_it() -> None:
    machine = {"platform": "linux/amd64", "container_engine": "docker"}
    fields = {"workflow": "w", "step_id": "s"}
    with pytest.raises(InvalidRequest) as caught:
        parse_request({"machine": {**machine, "mpi": "OpenMPI 4", "gpu": "CUDA 12.2"}, **fields})
    hints = {problem.field: problem.hint for problem in caught.value.problems}
    assert hints == {"machine.mpi": "write openmpi@4", "machine.gpu": "write cuda@12.2"}
