"""GPUs and their architectures, as vendors' tools and people name them."""

from __future__ import annotations

import pytest

from image_builder.errors import InvalidRequest
from image_builder.request.gpu_arch import UnknownArchitecture, architecture_of
from image_builder.request.mpi_gpu import gpu_of, gpu_problem
from tests.support.planning import composed, machine


@pytest.mark.parametrize(
    ("asked", "runtime", "architecture"),
    [
        ("a100", "cuda", "80"),
        ("A100-SXM4-40GB", "cuda", "80"),
        ("NVIDIA H100 80GB HBM3", "cuda", "90"),
        ("GH200 480GB", "cuda", "90"),
        ("Tesla V100-SXM2-16GB", "cuda", "70"),
        ("NVIDIA GeForce RTX 4090", "cuda", "89"),
        ("rtx4090", "cuda", "89"),
        ("NVIDIA RTX A6000", "cuda", "86"),
        ("RTX 6000 Ada Generation", "cuda", "89"),
        ("hopper", "cuda", "90"),
        ("sm_90a", "cuda", "90a"),
        ("sm80", "cuda", "80"),
        ("compute_80", "cuda", "80"),
        ("8.0", "cuda", "80"),
        ("AMD Instinct MI250X", "hip", "gfx90a"),
        ("MI300A", "hip", "gfx942"),
        ("gfx90a:xnack-", "hip", "gfx90a:xnack-"),
        ("cdna3", "hip", "gfx942"),
        ("lovelace", "cuda", "89"),
        ("Quadro RTX 6000", "cuda", "75"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "cuda", "89"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "cuda", "120"),
        ("NVIDIA RTX A4500", "cuda", "86"),
        ("NVIDIA TITAN RTX", "cuda", "75"),
        ("Radeon VII", "hip", "gfx906"),
        ("AMD Radeon RX 7900 XTX", "hip", "gfx1100"),
    ],
)
def test_names_of_gpus(asked: str, runtime: str, architecture: str) -> None:
    assert architecture_of(asked, runtime) == architecture
    assert machine(gpu=runtime, gpu_arch=asked).gpu_arch == asked


def test_a_name_without_a_number_is_like_no_product() -> None:
    for asked in ("native", "Instinct", "gpu"):
        with pytest.raises(UnknownArchitecture) as caught:
            architecture_of(asked, "cuda")
        assert caught.value.hint == "write sm_90"


@pytest.mark.parametrize(
    ("asked", "runtime", "word"),
    [
        ("ampere", "cuda", "a100 or a40"),
        ("mi250x", "cuda", '"gpu": "rocm"'),
        ("a100", "hip", '"gpu": "cuda"'),
        ("xyz", "cuda", "sm_90"),
    ],
)
def test_what_to_write_instead(asked: str, runtime: str, word: str) -> None:
    with pytest.raises(UnknownArchitecture) as caught:
        architecture_of(asked, runtime)
    assert word in caught.value.hint


@pytest.mark.parametrize(
    ("gpu", "arch", "problem", "hint"),
    [
        ("cuda@11.2", "h100", "sm_90 needs CUDA 11.8 or newer", "write cuda@11.8"),
        ("cuda@10", "a100", "sm_80 needs CUDA 11.0 or newer", "write cuda@11.0"),
        ("cuda@13", "v100", "sm_70 needs CUDA 9.0 to 12.9", "write cuda@12.9"),
        ("cuda@8", "v100", "sm_70 needs CUDA 9.0 to 12.9", "write cuda@9.0"),
        ("rocm@5.4", "mi300a", "gfx942 needs ROCm 5.7 or newer", "write hip@5.7"),
        ("cuda@12.6", "b200", "sm_100 needs CUDA 12.8 or newer", "write cuda@12.8"),
    ],
)
def test_a_runtime_that_does_not_know_the_gpu(gpu: str, arch: str, problem: str, hint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        composed("", gpu=gpu, gpu_arch=arch)
    (found,) = caught.value.problems
    assert (found.field, found.problem, found.hint) == ("machine.gpu", problem, hint)


@pytest.mark.parametrize(
    ("gpu", "arch"),
    [("cuda", "h100"), ("cuda@11", "h100"), ("cuda@12", None), ("rocm@6", "mi300a")],
)
def test_a_runtime_that_does(gpu: str, arch: str | None) -> None:
    wanted = gpu_of(machine(gpu=gpu, gpu_arch=arch))
    assert wanted is not None and gpu_problem(wanted) is None


@pytest.mark.parametrize(
    ("gpu", "word"),
    [
        ("a100", '"gpu": "cuda", "gpu_arch": "a100"'),
        ("mi250x", '"gpu": "rocm", "gpu_arch": "mi250x"'),
        ("cuda12", "write cuda@12"),
        ("rocm-6.1", "write rocm@6.1"),
        ("gfx90a", '"gpu": "rocm", "gpu_arch": "gfx90a"'),
        ("sm_80", '"gpu": "cuda", "gpu_arch": "sm_80"'),
        ("NVIDIA", "write cuda"),
        ("amd", "write rocm"),
    ],
)
def test_a_gpu_where_a_runtime_belongs(gpu: str, word: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        gpu_of(machine().model_copy(update={"gpu": gpu}))
    assert word in caught.value.problems[0].hint
