"""Machines on a Spack of which is known what it can do."""

from __future__ import annotations

from typing import Any

import pytest

from image_builder.errors import BadDescription, ErrorCode, InvalidRequest
from image_builder.recipe.environment import Environment
from image_builder.request.machines import load_machines
from tests.support.planning import base, composed, knowledge

ZLIB = "spack:\n  specs: [zlib]\n"
KOKKOS = "spack:\n  specs: [kokkos]\n"
NEW = (1, 2, 0)


def planned(text: str, *, release: str = "1.2.0", **fields: Any) -> Environment:
    numbers = tuple(map(int, release.split(".")))
    return composed(text, spack=numbers, knows=knowledge(release), **fields)


def of_catalogue(name: str, text: str = ZLIB, release: str = "1.2.0") -> Environment:
    return planned(text, release=release, **load_machines()[name].request_fields())


def required(environment: Environment, package: str) -> list[str]:
    assert environment.spack is not None
    return list(environment.spack["packages"].get(package, {}).get("require", ()))


def problems_of(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        planned(ZLIB, **fields)
    return {
        problem.field: f"{problem.problem}: {problem.hint}" for problem in caught.value.problems
    }


@pytest.mark.parametrize("name", ["lumi-g", "frontier"])
def test_an_mpi_that_cannot_take_the_gpu_is_exempt(name: str) -> None:
    environment = of_catalogue(name)
    assert required(environment, "mpich") == ["target=zen3"]
    assert environment.without_gpu == ("mpich",)
    assert any(
        "mpich@3.4 is built without ROCm: it takes +rocm from 4.1 on." in told
        for told in environment.warnings
    )


def test_an_mpi_that_can_is_not() -> None:
    environment = of_catalogue("perlmutter-gpu")
    assert environment.without_gpu == () and required(environment, "mpich") == []


def test_so_is_a_package_in_a_version_that_cannot() -> None:
    fields = {"gpu": "rocm@6", "gpu_arch": "mi250x"}
    environment = planned("spack:\n  specs: ['hypre@2.20.0', kokkos]\n", **fields)
    assert environment.without_gpu == ("hypre",)
    assert required(environment, "hypre") == ["target=haswell"]
    assert planned("spack:\n  specs: [hypre]\n", **fields).without_gpu == ()


def test_an_mpi_that_is_asked_for_without_the_gpu_is_built_so() -> None:
    environment = planned(ZLIB, mpi="openmpi@4~cuda", gpu="cuda@12", gpu_arch="a100")
    assert required(environment, "openmpi") == ["target=haswell", "~cuda"]
    assert required(environment, "mpi") == ["openmpi@4~cuda"]
    assert environment.without_gpu == ("openmpi",)


@pytest.mark.parametrize(
    ("fields", "newest", "gcc", "ways"),
    [
        (
            {"architecture": "rome", "mpi": "openmpi@4", "gpu": "cuda@10"},
            "CUDA 10.2",
            8,
            "alone: ask for cuda@12.",
        ),
        (
            load_machines()["karolina-gpu"].request_fields(),
            "CUDA 11.7",
            11,
            "alone: add gcc-11, g++-11, gfortran-11 under apt or ask for cuda@12.",
        ),
    ],
)
def test_a_cuda_that_takes_no_compiler_of_the_image_is_allowed_to(
    fields: dict[str, Any], newest: str, gcc: int, ways: str
) -> None:
    environment = planned(KOKKOS, **fields)
    assert required(environment, "cuda")[1:] == ["+allow-unsupported-compilers"]
    (told,) = [text for text in environment.warnings if "allow-unsupported" in text]
    assert f"{newest} takes gcc up to {gcc}; the image has gcc 12.2.0 alone" in told
    assert ways in told


@pytest.mark.parametrize(
    ("apt", "gpu"),
    [("", "cuda@12"), ("", "cuda"), ("apt: [gcc-11, g++-11, gfortran-11]\n", "cuda@11.7")],
)
def test_a_cuda_that_takes_one_is_left_alone(apt: str, gpu: str) -> None:
    environment = planned(apt + ZLIB, gpu=gpu)
    assert required(environment, "cuda") == []
    assert not any("unsupported" in told for told in environment.warnings)


def test_a_cuda_that_is_not_to_be_allowed_is_refused() -> None:
    problems = problems_of(gpu="cuda@10~allow-unsupported-compilers")
    assert "CUDA 10.2 takes gcc up to 8" in problems["machine.gpu"]


def test_without_compilers_that_are_known_none_is_judged() -> None:
    knows = knowledge("1.2.0").model_copy(update={"compilers": ()})
    unknown = base(NEW, compilers={})
    environment = composed(ZLIB, apt_base=unknown, knows=knows, gpu="cuda@10")
    assert required(environment, "cuda") == []


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"mpi": "cray-mpich"}, "machine.mpi", ["exists as an external only", "write mpich@3.4"]),
        ({"mpi": "spectrum-mpi"}, "machine.mpi", ["external only", "write openmpi@4"]),
        ({"mpi": "msmpi"}, "machine.mpi", ["external only", "write mpich@4"]),
        ({"mpi": "openmpi@9"}, "machine.mpi", ["has no openmpi@9", "openmpi@5.0.10"]),
        ({"mpi": "openmpi@v4"}, "machine.mpi", ["has no openmpi@v4", "write openmpi@4"]),
        ({"gpu": "cuda@12.x"}, "machine.gpu", ["has no cuda@12.x", "write cuda@12"]),
        ({"mpi": "intel"}, "machine.mpi", ["not a known MPI", "write intel-oneapi-mpi"]),
        ({"mpi": "openmpi@4+foo"}, "machine.mpi", ["openmpi has no variant foo"]),
        ({"gpu": "cuda@14"}, "machine.gpu", ["has no cuda@14", "cuda@13.3.0, the newest"]),
        ({"gpu": "hip@9"}, "machine.gpu", ["has no hip@9", "hip@7.2.3"]),
        ({"gpu": "cuda@11.8", "gpu_arch": "h100"}, "machine.gpu", ["sm_90 needs CUDA 12.0"]),
        ({"architecture": "zen6"}, "machine.architecture", ["does not know zen6", "write zen5"]),
    ],
)
def test_what_this_spack_cannot_build(fields: dict[str, Any], field: str, words: list[str]) -> None:
    problem = problems_of(**fields)[field]
    assert all(word in problem for word in words), problem


def test_an_external_of_the_site_or_the_workflow_is_not_judged() -> None:
    external = {"externals": [{"spec": "cray-mpich@8.1", "prefix": "/opt/cray"}]}
    environment = planned(ZLIB, mpi="cray-mpich@8.1", site_packages={"cray-mpich": external})
    assert environment.mpi == "cray-mpich@8.1"
    text = (
        f"{ZLIB}  packages:\n    cray-mpich:\n      externals:\n"
        "      - {spec: cray-mpich@8.1, prefix: /opt/cray}\n"
    )
    assert planned(text, mpi="cray-mpich@8.1").mpi == "cray-mpich@8.1"


def test_what_is_not_known_is_not_judged() -> None:
    assert composed(ZLIB, mpi="cray-mpich@8.1").mpi == "cray-mpich@8.1"
    own = knowledge("1.2.0").without(["openmpi"])
    assert composed(ZLIB, spack=NEW, mpi="openmpi@9", knows=own).mpi == "openmpi@9"


@pytest.mark.parametrize(
    ("spec", "fields", "words"),
    [
        (
            "kokkos +cuda cuda_arch=70",
            {"gpu": "cuda@12", "gpu_arch": "a100"},
            ["cuda_arch=70", "80"],
        ),
        ("kokkos +rocm amdgpu_target=gfx90a", {"gpu": "cuda@12"}, ["+rocm", "CUDA"]),
        ("kokkos amdgpu_target=gfx90a", {"gpu": "cuda@12"}, ["amdgpu_target=gfx90a", "CUDA"]),
        ("kokkos +cuda", {"gpu": "rocm@6", "gpu_arch": "mi250x"}, ["+cuda", "ROCm"]),
        ("kokkos ^cuda@11.0:11.7", {"gpu": "cuda@12"}, ["cuda@11.0:11.7", "cuda@12"]),
        (
            "kokkos +rocm amdgpu_target=gfx908",
            {"gpu": "rocm@6", "gpu_arch": "mi250x"},
            ["amdgpu_target=gfx908", "gfx90a"],
        ),
    ],
)
def test_a_workflow_for_another_gpu_is_a_conflict_with_its_line(
    spec: str, fields: dict[str, Any], words: list[str]
) -> None:
    for place in (
        f"spack:\n  specs:\n    - {spec}\n",
        f"spack:\n  specs: [$libs]\n  definitions:\n    - libs: ['{spec}']\n",
    ):
        with pytest.raises(BadDescription) as caught:
            planned(place, **fields)
        assert caught.value.code is ErrorCode.CONFLICT
        assert caught.value.line is not None and caught.value.line > 1
        assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "spack:\n  specs: [kokkos +cuda cuda_arch=80]\n",
        "spack:\n  specs: ['kokkos +cuda cuda_arch=70,80']\n",
        "spack:\n  specs: [kokkos ~rocm]\n",
        "spack:\n  specs: [kokkos]\n  packages:\n    all:\n      variants: cuda_arch=70\n",
        "spack:\n  specs: [kokkos]\n  packages:\n    kokkos:\n"
        "      require: [{any_of: [+cuda, +rocm]}]\n",
    ],
)
def test_what_can_hold_is_no_conflict(text: str) -> None:
    assert planned(text, gpu="cuda@12", gpu_arch="a100").spack is not None


@pytest.mark.parametrize(
    ("name", "release", "words"),
    [
        ("lumi-g", "0.23.1", ["no hip@6.3", "hip@6.2.1, the newest that it has"]),
        ("jupiter-booster", "0.23.1", ["no cuda@13", "cuda@12.6.2"]),
        ("leonardo-booster", "0.19.2", ["no openmpi@4.1.6", "openmpi@4.1.4", "no cuda@12.2"]),
        ("leonardo-dcgp", "0.19.2", ["does not know sapphirerapids", "write icelake"]),
    ],
)
def test_a_spack_that_is_too_old_for_a_machine(name: str, release: str, words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        of_catalogue(name, release=release)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_gpu_that_is_newer_than_spack() -> None:
    with pytest.raises(InvalidRequest) as caught:
        planned(ZLIB, release="0.23.1", gpu="cuda", gpu_arch="b200")
    (found,) = caught.value.problems
    assert found.problem == "Spack 0.23.1 does not know sm_100" and "sm_90a" in found.hint


@pytest.mark.parametrize("release", ["0.19.2", "0.23.1", "1.1.0", "1.2.0"])
def test_the_first_request_of_the_readme_is_planned_everywhere(release: str) -> None:
    environment = planned(
        ZLIB, release=release, architecture="rome", mpi="openmpi@4", gpu="cuda@10"
    )
    rules = required(environment, "cuda")
    texts = [rule if isinstance(rule, str) else rule["one_of"][0] for rule in rules]
    assert texts == ["target=zen2", "+allow-unsupported-compilers"]


@pytest.mark.parametrize(
    ("packages", "line", "words"),
    [
        ("mpi: {buildable: false}", 4, "mpi: buildable is false, the request names openmpi@4"),
        ("openmpi: {buildable: false}", 4, "openmpi: buildable is false"),
        ("all: {buildable: false}", 4, "all: buildable is false"),
        ("mpi: {conflict: [openmpi]}", 4, "conflict excludes openmpi"),
        ("openmpi: {conflict: ['@4']}", 4, "conflict excludes @4, the request names openmpi@4"),
        ("openmpi: {conflict: [{spec: openmpi}]}", 4, "conflict excludes openmpi"),
        ("cuda: {conflict: ['@:12']}", 4, "conflict excludes @:12, the request names cuda@12"),
    ],
)
def test_a_workflow_that_keeps_the_machine_s_parts_out(
    packages: str, line: int, words: str
) -> None:
    with pytest.raises(BadDescription) as caught:
        planned(f"{ZLIB}  packages:\n    {packages}\n", mpi="openmpi@4", gpu="cuda@12")
    assert caught.value.code is ErrorCode.CONFLICT and caught.value.line == line
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "packages",
    [
        "{mpi: {buildable: false}, openmpi: {buildable: true}}",
        "{mpi: {buildable: false}, openmpi: {externals: [{spec: openmpi@4.1.4, prefix: /usr}]}}",
        "{mpi: {conflict: [mpich]}, mpich: {buildable: false}}",
        "{openmpi: {conflict: ['@4.0', '@:3', {spec: '@4', when: '%clang'}]}}",
    ],
)
def test_what_leaves_them_in(packages: str) -> None:
    assert planned(f"{ZLIB}  packages: {packages}\n", mpi="openmpi@4").spack is not None


def test_what_apt_brings_may_be_found_as_an_external() -> None:
    text = f"apt: [libopenmpi-dev]\n{ZLIB}  packages: {{mpi: {{buildable: false}}}}\n"
    assert planned(text, mpi="openmpi@4").spack is not None


@pytest.mark.parametrize(
    ("packages", "line"),
    [("kokkos: {buildable: false}", 4), ("all: {buildable: false}", 4)],
)
def test_a_root_that_is_not_to_be_built_and_is_nowhere(packages: str, line: int) -> None:
    with pytest.raises(BadDescription) as caught:
        planned(f"{KOKKOS}  packages:\n    {packages}\n")
    assert caught.value.code is ErrorCode.CONFLICT and caught.value.line == line
    assert "buildable is false, and specs names kokkos, which has no external" in str(caught.value)


@pytest.mark.parametrize(
    "packages",
    [
        "{kokkos: {buildable: false, externals: [{spec: kokkos@4, prefix: /usr}]}}",
        "{all: {buildable: false}, kokkos: {buildable: true}}",
        "{hwloc: {buildable: false}}",
    ],
)
def test_a_root_that_is_built_or_taken_from_the_image(packages: str) -> None:
    assert planned(f"{KOKKOS}  packages: {packages}\n").spack is not None


def test_a_root_that_spack_may_find_in_the_image_is_told() -> None:
    (told,) = [
        one
        for one in planned(
            "spack:\n  specs: [cmake]\n  packages:\n    cmake: {buildable: false}\n"
        ).warnings
        if "buildable" in one
    ]
    assert told == (
        "eflows4hpc.yaml, line 4: packages: cmake: buildable is false, and specs names cmake, which "
        "has no external: the build fails unless Spack finds one in the image."
    )


@pytest.mark.parametrize(
    ("spec", "mpi", "told"),
    [
        ("hdf5 ^mpi@9:", "openmpi@4", "asks for mpi@9:, openmpi@4 provides mpi@:3.1"),
        ("hdf5 ^mpi@4", "openmpi@4", "asks for mpi@4, openmpi@4 provides mpi@:3.1"),
        ("hdf5 ^mpi@3:", "openmpi@4", ""),
        ("hdf5 ^mpi@4", "mpich@4.2", ""),
        ("hdf5 ^mpi", "openmpi@4", ""),
        ("hdf5 ^mpi@2", "openmpi", ""),
    ],
)
def test_a_version_of_mpi_s_own_standard(spec: str, mpi: str, told: str) -> None:
    text = f"spack:\n  specs: ['{spec}']\n"
    if not told:
        assert planned(text, mpi=mpi).spack is not None
        return
    with pytest.raises(BadDescription) as caught:
        planned(text, mpi=mpi)
    assert caught.value.line == 2 and told in str(caught.value)


@pytest.mark.parametrize(
    ("packages", "without"),
    [
        ("{all: {require: cuda_arch=80}}", ()),
        ("{kokkos: {require: cuda_arch=80}}", ()),
        ("{kokkos: {variants: +cuda}}", ("kokkos",)),
    ],
)
def test_an_architecture_that_the_description_names(
    packages: str, without: tuple[str, ...]
) -> None:
    environment = planned(f"{KOKKOS}  packages: {packages}\n", gpu="cuda@12")
    assert environment.without_gpu == without


def test_an_architecture_helps_no_version_that_refuses_the_gpu() -> None:
    text = "spack:\n  specs: ['mpich@3.4 amdgpu_target=gfx90a']\n"
    environment = planned(text, gpu="rocm@6", gpu_arch="gfx90a")
    assert environment.without_gpu == ("mpich",)


@pytest.mark.parametrize("release", ["0.23.1", "1.1.0", "1.2.0"])
def test_what_takes_the_gpu_for_an_architecture_alone(release: str) -> None:
    """Else Spack has no solution (1.1), or takes an architecture of its own choice (0.23, 1.2)."""
    options: dict[str, Any] = {"knows": knowledge(release), "gpu": "cuda@12"}
    plain = composed(KOKKOS, **options)
    assert "kokkos" in plain.without_gpu and "~cuda" in required(plain, "kokkos")
    assert any(
        "kokkos is built without CUDA: it takes +cuda for an arch" in w for w in plain.warnings
    )
    named = composed(KOKKOS, gpu_arch="a100", **options)
    assert named.without_gpu == ()
    own = composed("spack:\n  specs: ['kokkos+cuda cuda_arch=80']\n", **options)
    assert own.without_gpu == ()
    with pytest.raises(InvalidRequest) as caught:
        composed("spack:\n  specs: [kokkos+cuda]\n", **options)
    assert "machine.gpu_arch: kokkos takes +cuda for an architecture alone" in str(caught.value)


def test_a_preferred_version_of_the_machine_s_mpi_gives_way() -> None:
    text = f"{ZLIB}  packages: {{openmpi: {{version: [5]}}, cuda: {{version: [11, '12.2']}}}}\n"
    told = planned(text, mpi="openmpi@4", gpu="cuda@12").warnings
    assert [one for one in told if "cuda@11" in one] == []
    assert any(
        "version names openmpi@5, the request openmpi@4: the request counts" in one for one in told
    )
