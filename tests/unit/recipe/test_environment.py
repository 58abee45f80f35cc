"""A description and a machine becoming an environment: what is kept, what is added, what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from image_builder.errors import BadDescription, ErrorCode, InvalidRequest, UserError
from image_builder.recipe.environment import Environment, compose
from image_builder.sources.step import StepFolder
from tests.support.golden_files import assert_golden
from tests.support.planning import base, composed, corpus, described, machine

RELEASES = [(0, 19, 2), (0, 23, 1), (1, 1, 0), (1, 2, 0)]
MACHINES: dict[str, dict[str, Any]] = {
    "amd64": {"architecture": "zen2", "mpi": "openmpi@4", "gpu": "cuda@12", "gpu_arch": "a100"},
    "arm64": {"platform": "linux/arm64", "architecture": "neoverse_n1", "mpi": "mpich@4"},
    "ppc64le": {"platform": "linux/ppc64le", "architecture": "power9le", "mpi": "spectrum-mpi"},
}


def packages(environment: Environment) -> dict[str, Any]:
    assert environment.spack is not None
    return dict(environment.spack["packages"])


def required(environment: Environment, package: str) -> list[str]:
    """The plain requirements on a package, whatever form the release wants."""
    rules = packages(environment)[package]["require"]
    return [rule if isinstance(rule, str) else rule["one_of"][0] for rule in rules]


def required_rules(environment: Environment, package: str) -> list[Any]:
    """The requirements on a package, groups as they are."""
    rules: list[Any] = packages(environment)[package]["require"]
    return rules


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: ".".join(map(str, release)))
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("step", corpus())
def test_the_corpus_plans_for_every_platform(
    step: str, name: str, release: tuple[int, ...]
) -> None:
    environment = compose(described(corpus()[step]), machine(**MACHINES[name]), base=base(release))
    assert f"target={environment.target}" in required(environment, "all")
    assert environment.spack_yaml is not None
    assert yaml.safe_load(environment.spack_yaml) == {"spack": environment.spack}
    user = described(corpus()[step]).spack
    assert user is not None and environment.spack is not None
    assert environment.spack["specs"][: len(user["specs"])] == user["specs"]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: ".".join(map(str, release)))
@pytest.mark.parametrize("step", ["kaust/exageostat", "tutorial/lysozyme"])
def test_golden_spack_yaml(step: str, release: tuple[int, ...]) -> None:
    environment = compose(
        described(corpus()[step]), machine(**MACHINES["amd64"]), base=base(release)
    )
    assert_golden(
        f"{step.replace('/', '-')}-{'.'.join(map(str, release))}.yaml", environment.spack_yaml or ""
    )


def test_nothing_for_spack_when_nothing_needs_it() -> None:
    environment = composed("apt: [jq]\npip: [six]\n")
    assert environment.spack is None and environment.spack_yaml is None
    assert environment.apt == ("jq",) and environment.requirements == "six\n"


@pytest.mark.parametrize(
    "text", ["", "spack: {}\n", "spack: {specs: []}\n", "spack: {packages: {}}\n", "apt: [jq]\n"]
)
def test_the_mpi_is_there_when_nothing_else_is(text: str) -> None:
    environment = composed(text, mpi="openmpi@4")
    assert environment.roots == ("openmpi@4",)
    assert required(environment, "mpi") == ["openmpi@4"]
    assert required(environment, "all") == ["target=haswell"]


def test_a_spack_section_without_specs_and_machine_needs_installs_nothing_and_says_so() -> None:
    environment = composed("spack:\n  packages: {all: {variants: [+shared]}}\n")
    assert environment.spack is None
    assert any("no specs" in warning for warning in environment.warnings)


def test_what_the_user_wrote_is_kept() -> None:
    environment = composed(
        """
spack:
  specs: [hdf5@1.14, netcdf-c]
  packages:
    all: {variants: [+shared], require: ['%gcc'], providers: {blas: [openblas]}}
    hdf5: {require: '@1.14.3', variants: [+fortran]}
    netcdf-c: {version: [4.9.2]}
    blas: {require: openblas}
  concretizer: {unify: when_possible}
""",
        mpi="openmpi@4",
    )
    kept = packages(environment)
    assert kept["all"]["variants"] == ["+shared"]
    assert kept["all"]["providers"] == {"blas": ["openblas"], "mpi": ["openmpi"]}
    assert kept["netcdf-c"] == {"version": ["4.9.2"]}
    assert kept["hdf5"] == {"require": ["@1.14.3", "target=haswell"], "variants": ["+fortran"]}
    assert kept["blas"] == {"require": "openblas"}, "a virtual package has no target"
    assert required(environment, "all") == ["%gcc", "target=haswell"]
    assert environment.spack is not None
    assert environment.spack["concretizer"]["unify"] == "when_possible"
    assert environment.roots == ("hdf5@1.14", "netcdf-c", "openmpi@4")


def test_requirements_of_the_site_hide_those_of_all_too() -> None:
    environment = composed(
        "spack:\n  specs: [hdf5]\n",
        site_packages={
            "hdf5": {"require": [{"any_of": ["@1.14"]}]},
            "blas": {"require": ["openblas"]},
            "zlib": {"buildable": False},
        },
    )
    assert required(environment, "hdf5") == ["target=haswell"]
    assert set(packages(environment)) == {"all", "hdf5"}


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: ".".join(map(str, release)))
def test_the_required_target_stands_once(release: tuple[int, ...]) -> None:
    """From 1.0 on, externals get the required target only if there is exactly one."""
    environment = composed(
        """
spack:
  specs: [hdf5]
  packages:
    all: {require: ['target=haswell', 'target=x86_64_v2: %gcc']}
    hdf5: {require: 'target=:haswell'}
""",
        spack=release,
        gpu="cuda@12",
        site_packages={"openmpi": {"externals": [{"spec": "openmpi@4.1.4"}]}},
    )
    assert [rule for rule in required(environment, "all") if "target" in rule] == ["target=haswell"]
    assert "%gcc" in required(environment, "all")
    assert required(environment, "hdf5") == required(environment, "openmpi") == ["target=haswell"]


def test_a_plain_requirement_of_the_site_is_not_lost() -> None:
    environment = composed(
        "spack:\n  specs: [hdf5]\n",
        site_packages={"hdf5": {"require": "@1.14"}, "all": {"require": "%gcc"}},
    )
    assert required(environment, "hdf5") == ["@1.14", "target=haswell"]
    assert required(environment, "all") == ["%gcc", "target=haswell"]


def test_before_spack_0_20_requirements_are_groups() -> None:
    environment = composed(
        "spack:\n  specs: [hdf5]\n  packages:\n    hdf5: {require: '@1.14'}\n",
        spack=(0, 19, 2),
        mpi="openmpi@4",
    )
    assert packages(environment)["hdf5"]["require"] == [
        {"one_of": ["@1.14"]},
        {"one_of": ["target=haswell"]},
    ]
    assert packages(environment)["mpi"]["require"] == [{"one_of": ["openmpi@4"]}]


def test_compilers_are_translated_for_releases_in_which_they_are_packages() -> None:
    text = (
        "spack:\n  specs: [zlib]\n"
        "  packages: {all: {compiler: [gcc@11, clang]}, hdf5: {compiler: [clang@15]}}\n"
    )
    before, after = packages(composed(text)), packages(composed(text, spack=(1, 0, 0)))
    assert before["all"]["compiler"] == ["gcc@11", "clang"]
    assert before["hdf5"] == {"prefer": ["%clang@15"]}, "its schema has no compiler there"
    assert packages(composed(text, spack=(0, 22, 5)))["hdf5"] == {"compiler": ["clang@15"]}
    assert "compiler" not in after["all"]
    assert [after[language] for language in ("c", "cxx", "fortran")] == [
        {"prefer": ["gcc@11", "llvm"]}
    ] * 3
    assert after["hdf5"] == {"prefer": ["%llvm@15"]}


@pytest.mark.parametrize(
    ("text", "place", "read"),
    [
        ("concretizer: {timeout: 9}", "concretizer: timeout", [(1, 1, 0), (1, 2, 0)]),
        (
            "concretizer: {static_analysis: true}",
            "concretizer: static_analysis",
            [(1, 1, 0), (1, 2, 0)],
        ),
        (
            "concretizer: {duplicates: {strategy: full}}",
            "concretizer: duplicates",
            [(0, 23, 1), (1, 1, 0), (1, 2, 0)],
        ),
        ("packages: {a: {target: [haswell]}}", "packages: a: target", [(0, 19, 2)]),
        ("packages: {a: {providers: {blas: [b]}}}", "packages: a: providers", [(0, 19, 2)]),
        (
            "packages: {a: {prefer: [+x]}}",
            "packages: a: prefer",
            [(0, 23, 1), (1, 1, 0), (1, 2, 0)],
        ),
    ],
)
@pytest.mark.parametrize("release", RELEASES, ids=lambda release: ".".join(map(str, release)))
def test_settings_that_the_release_does_not_read_are_left_out(
    text: str, place: str, read: list[tuple[int, ...]], release: tuple[int, ...]
) -> None:
    environment = composed(f"spack:\n  specs: [a]\n  {text}\n", spack=release)
    assert environment.spack is not None
    key = place.rpartition(" ")[2]
    part = environment.spack["concretizer"] if "conc" in place else packages(environment).get("a")
    assert (key in (part or {})) is (release in read)
    assert any(place in told for told in environment.warnings) is (release not in read)


def test_what_the_site_decides_in_the_concretizer() -> None:
    environment = composed(
        "spack:\n  specs: [zlib]\n  concretizer: {reuse: true, targets: {granularity: generic}}\n"
        "  view: /somewhere\n"
    )
    assert environment.spack is not None
    assert environment.spack["concretizer"] == {
        "unify": True,
        "reuse": False,
        "targets": {"granularity": "microarchitectures", "host_compatible": False},
    }
    assert environment.spack["view"] == "/opt/view"
    assert len(environment.warnings) == 3


@pytest.mark.parametrize(
    ("place", "is_ours"),
    [
        ("/opt/view", True),
        ("/opt/view/", True),
        ("/opt//view", True),
        ("//opt/./view/.", True),
        ("/opt/view/x", False),
        ("/opt/views", False),
        ("opt/view", False),
    ],
)
@pytest.mark.parametrize("form", ["{}", "{{default: {{root: {}}}}}"])
def test_only_another_place_than_the_views_is_warned_of(
    place: str, is_ours: bool, form: str
) -> None:
    environment = composed(f"spack:\n  specs: [zlib]\n  view: {form.format(place)}\n")
    assert environment.spack is not None
    view = environment.spack["view"]
    assert (view if isinstance(view, str) else view["default"]["root"]) == "/opt/view"
    assert ["the view is at" in warning for warning in environment.warnings] == [True] * (
        not is_ours
    )


def test_named_views_stay_beside_ours() -> None:
    environment = composed(
        "spack:\n  specs: [zlib]\n  view: {default: {root: /x, link: run}, tools: {root: /opt/t}}\n"
    )
    assert environment.spack is not None
    assert environment.spack["view"] == {
        "tools": {"root": "/opt/t"},
        "default": {"root": "/opt/view", "link": "run"},
    }


@pytest.mark.parametrize(
    ("asked", "spec"),
    [
        ("mpich@4", "mpich@4"),
        ("impi@2021", "intel-oneapi-mpi@2021"),
        ("cray-mpich@8.1", "cray-mpich@8.1"),
        ("mvapich2", "mvapich2"),
        ("OpenMPI@4.1", "openmpi@4.1"),
        ("intel-mpi@2018", "intel-mpi@2018"),
        ("openmpi@4 +pmi fabrics=ucx", "openmpi@4 +pmi fabrics=ucx"),
    ],
)
def test_mpi_as_people_write_it(asked: str, spec: str) -> None:
    environment = composed("", mpi=asked)
    assert environment.mpi == spec
    assert environment.roots == (spec,)


@pytest.mark.parametrize(
    ("fields", "field", "word"),
    [
        ({"mpi": "openmpy@4"}, "machine.mpi", "openmpi"),
        ({"mpi": "openmpi@4 %gcc cflags=-wrapper"}, "machine.mpi", "openmpi@4"),
        ({"gpu": "opencl"}, "machine.gpu", "cuda"),
        ({"gpu": "cuda@12", "gpu_arch": "gfx90a"}, "machine.gpu_arch", "sm_90"),
        ({"gpu": "hip@6", "gpu_arch": "a100"}, "machine.gpu_arch", "gfx90a"),
        ({"gpu": "cuda@12", "gpu_arch": "h1000"}, "machine.gpu_arch", "h100"),
    ],
)
def test_machine_parts_that_nobody_knows(fields: dict[str, str], field: str, word: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        composed("", **fields)
    assert caught.value.problems[0].field == field
    assert word in caught.value.problems[0].hint


def test_an_mpi_that_this_spack_no_longer_has() -> None:
    with pytest.raises(InvalidRequest) as caught:
        composed("", mpi="intel-mpi@2018", spack=(1, 1, 0))
    assert "intel-oneapi-mpi" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("gpu", "asked", "arch"),
    [
        ("cuda@12", "80", "80"),
        ("cuda@12", "sm_90", "90"),
        ("cuda@12", "A100", "80"),
        ("cuda", "8.6", "86"),
        ("cuda@12", "h100", "90"),
        ("hip@6", "mi250x", "gfx90a"),
        ("rocm@6", "gfx942", "gfx942"),
        ("cuda@12", None, None),
    ],
)
def test_gpu_architectures_as_people_write_them(
    gpu: str, asked: str | None, arch: str | None
) -> None:
    assert composed("", gpu=gpu, gpu_arch=asked).gpu_arch == arch


def test_packages_are_built_for_the_gpu() -> None:
    environment = composed("spack:\n  specs: [gromacs]\n", gpu="rocm@6", gpu_arch="mi250x")
    assert environment.roots == ("gromacs", "hip@6")
    assert required(environment, "all") == ["target=haswell", "+rocm", "+rocm amdgpu_target=gfx90a"]


def test_before_spack_0_21_gpu_variants_are_preferred() -> None:
    """There, a requirement on all packages fails for every package that has no such variant."""
    environment = composed(
        "spack:\n  specs: [gromacs]\n", gpu="cuda@12", gpu_arch="80", spack=(0, 19, 2)
    )
    assert required(environment, "all") == ["target=haswell"]
    assert packages(environment)["all"]["variants"] == ["+cuda cuda_arch=80"]


def test_a_package_without_the_gpu_and_externals_stay_so() -> None:
    environment = composed(
        "spack:\n  specs: [hdf5~cuda]\n",
        gpu="cuda@12",
        mpi="openmpi@4",
        site_packages={"openmpi": {"externals": [{"spec": "openmpi@4.1.4", "prefix": "/usr"}]}},
    )
    assert required(environment, "hdf5") == ["target=haswell", "~cuda"]
    assert required(environment, "openmpi") == ["target=haswell"]
    assert not environment.find_externals, "the site says itself what the base image has"
    assert any("hdf5" in warning and "without cuda" in warning for warning in environment.warnings)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("spack:\n  specs:\n  - hdf5 ^mpich@4\n", 3, ("mpich", "openmpi@4")),
        ("spack:\n  specs: [zlib, mpich]\n", 2, ("mpich", "openmpi@4")),
        ("spack:\n  specs: [openmpi@3.1]\n", 2, ("openmpi@3.1", "openmpi@4")),
        (
            "spack:\n  specs: [a]\n  packages:\n    mpi: {require: mvapich2}\n",
            4,
            ("mvapich2", "openmpi@4"),
        ),
        (
            "spack:\n  specs: [a]\n  packages:\n    mpi: {require: [{one_of: [cray-mpich]}]}\n",
            4,
            ("cray-mpich",),
        ),
        (
            "spack:\n  specs: [a]\n  packages:\n    hdf5: {require: ['^[virtuals=mpi] mpich']}\n",
            4,
            ("mpich",),
        ),
        ("spack:\n  definitions:\n  - x: [hdf5^mpich]\n  specs: [$x]\n", 3, ("mpich", "openmpi@4")),
        ("spack:\n  specs: [{matrix: [[hdf5], [^mpich]]}]\n", 2, ("mpich", "openmpi@4")),
        ("spack:\n  specs: [zlib target=zen2]\n", 2, ("zen2", "haswell")),
        ("spack:\n  specs: [zlib arch=linux-debian12-zen2]\n", 2, ("zen2", "haswell")),
        ("spack:\n  specs: ['zlib target=x86_64_v4:']\n", 2, ("x86_64_v4:", "haswell")),
        (
            "spack:\n  specs: [a]\n  packages:\n    hdf5: {require: target=zen2}\n",
            4,
            ("zen2", "haswell"),
        ),
        ("spack:\n  specs: [cuda@11]\n", 2, ("cuda@11", "cuda@12")),
    ],
)
def test_what_workflow_and_machine_cannot_both_have(
    text: str, line: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(BadDescription) as caught:
        composed(text, mpi="openmpi@4", gpu="cuda@12")
    assert caught.value.code is ErrorCode.CONFLICT
    assert caught.value.line == line
    assert all(word in caught.value.message for word in words)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "spack:\n  specs: [openmpi@4.1, hdf5 ^openmpi]\n",
        "spack:\n  specs: ['openmpi@3:5']\n",
        "spack:\n  specs: [zlib target=haswell, 'hdf5 target=x86_64_v2:', 'lz4 target=:haswell']\n",
        "spack:\n  specs: [a]\n  packages:\n    all: {target: [zen2, haswell], providers: {mpi: [openmpi, mpich]}}\n",
        "spack:\n  specs: [a]\n  packages:\n    all: {conflict: [^mpich]}\n    mpi: {buildable: false}\n",
    ],
)
def test_what_workflow_and_machine_can_both_have(text: str) -> None:
    assert required(composed(text, mpi="openmpi@4"), "mpi") == ["openmpi@4"]


@pytest.mark.parametrize(
    ("packages", "word"),
    [
        ("all: {providers: {mpi: [mpich, mvapich2]}}", "mpich"),
        ("all: {target: [zen2, skylake]}", "zen2"),
        ("mpi: {prefer: [mpich]}", "mpich"),
        ("mpi: {prefer: [{spec: mpich}]}", "mpich"),
        ("all: {prefer: [target=zen2]}", "zen2"),
        ("all: {variants: ~cuda}", "~cuda everywhere"),
        ("all: {prefer: [~cuda]}", "~cuda everywhere"),
        ("cuda: {prefer: ['@11']}", "cuda@11"),
    ],
)
def test_a_preference_gives_way_with_a_warning(packages: str, word: str) -> None:
    environment = composed(
        f"spack:\n  specs: [a]\n  packages:\n    {packages}\n", mpi="openmpi@4", gpu="cuda@12"
    )
    (warning,) = [text for text in environment.warnings if "the request counts" in text]
    assert word in warning and "line 4" in warning


@pytest.mark.parametrize(
    "packages",
    [
        "all: {providers: {mpi: [mpich, openmpi]}}",
        "mpi: {require: [{one_of: [mpich, openmpi]}]}",
        "mpi: {require: [{any_of: [mpich@4, openmpi@4.1]}]}",
        "all: {require: [{any_of: [target=zen2, target=haswell]}]}",
        "mpich: {require: mpich@3.4 device=ch3}",
        "hdf5: {require: [{spec: ^mpich, when: +x}]}",
    ],
)
def test_alternatives_that_the_machine_is_one_of(packages: str) -> None:
    environment = composed(f"spack:\n  specs: [a]\n  packages:\n    {packages}\n", mpi="openmpi@4")
    assert "openmpi@4" in required_rules(environment, "mpi")
    assert not environment.warnings


def test_alternatives_lose_the_targets_that_are_decided() -> None:
    environment = composed(
        "spack:\n  specs: [a]\n  packages:\n"
        "    all: {require: [{any_of: [target=zen2, target=haswell]}]}\n"
        "    a: {require: [{one_of: ['+x target=haswell', '+y target=zen2']}]}\n"
    )
    assert packages(environment)["all"]["require"] == ["target=haswell"]
    assert packages(environment)["a"]["require"] == [{"one_of": ["+x"]}, "target=haswell"]


def test_all_conflicts_are_told_at_once() -> None:
    with pytest.raises(BadDescription) as caught:
        composed(
            "spack:\n  specs:\n  - hdf5 ^mpich\n  - zlib target=zen2\n  - cuda@11\n"
            "  - lz4 cflags=-march=native\n",
            mpi="openmpi@4",
            gpu="cuda@12",
        )
    assert caught.value.code is ErrorCode.CONFLICT
    for word in ("line 3", "mpich", "line 4", "zen2", "line 5", "cuda@11", "line 6", "native"):
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("flags", "is_fine"),
    [
        ("-O3 -march=haswell", True),
        ("-march=x86-64-v3", True),
        ("-march=x86_64_v2 -mtune=generic", True),
        ("-mavx2 -mcmodel=large", True),
        ("-march=native", False),
        ("-mtune=native", False),
        ("-mcpu=native", False),
        ("-march=skylake-avx512", False),
        ("-O2 -mavx512f", False),
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        "specs: [\"a cflags='{}'\"]",
        "specs: [\"a ^b cxxflags=='{}'\"]",
        "specs: [a]\n  packages: {{a: {{require: \"fflags='{}'\"}}}}",
        "specs: [a]\n  packages: {{a: {{prefer: [\"fflags='{}'\"]}}}}",
        "specs: [a]\n  packages: {{a: {{require: [{{one_of: [\"cflags='{}'\", cflags=-O1]}}]}}}}",
        "specs: [a]\n  packages: {{a: {{require: [{{spec: \"cflags='{}'\", when: '@1'}}]}}}}",
    ],
)
def test_flags_stay_within_the_target(place: str, flags: str, is_fine: bool) -> None:
    text = f"spack:\n  {place.format(flags)}\n"
    if is_fine:
        assert composed(text).roots
        return
    with pytest.raises(BadDescription) as caught:
        composed(text)
    assert caught.value.code is ErrorCode.CONFLICT


def test_a_definition_is_excluded_by_releases_that_expand_it() -> None:
    """Real Spack 0.23 does, and 1.2 stops at it."""
    text = (
        "spack:\n  definitions: [{x: ['^mpich']}]\n  specs:\n"
        "  - {matrix: [[hdf5], [^openmpi, ^mpich]], exclude: [$x]}\n"
    )
    assert composed(text, mpi="openmpi@4", spack=(0, 23, 1)).spack is not None
    with pytest.raises(BadDescription, match="names a definition") as caught:
        composed(text, mpi="openmpi@4", spack=(1, 2, 0))
    assert caught.value.line == 4 and "specs themselves" in caught.value.hint
    other = text.replace("['^mpich']", "['^lz4']")
    with pytest.raises(BadDescription, match="the MPI mpich"):
        composed(other, mpi="openmpi@4", spack=(0, 23, 1))


def test_flags_that_spack_does_not_read_are_told() -> None:
    told = composed("spack:\n  specs: [a]\n  packages:\n    all: {variants: [+x, cflags=-O3]}\n")
    assert any("line 4: cflags below variants is not used" in warning for warning in told.warnings)
    assert composed("spack: {specs: [\"a cflags=''\"]}").roots


WITHOUT_CUDA = {
    "root": "specs: [hwloc~cuda]",
    "false": "specs: [hwloc cuda=False]",
    "dependency": "specs: [lz4 ^hwloc~cuda]",
    "definition": "definitions: [{libs: [hwloc~cuda]}]\n  specs: [$libs]",
    "matrix": "specs: [{matrix: [[hwloc], [~cuda]]}]",
    "variants": "specs: [hwloc]\n  packages: {hwloc: {variants: ~cuda}}",
    "variant list": "specs: [hwloc]\n  packages: {hwloc: {variants: [+gl, ~cuda]}}",
    "prefer": "specs: [hwloc]\n  packages: {hwloc: {prefer: [~cuda]}}",
    "require": "specs: [hwloc]\n  packages: {hwloc: {require: ~cuda}}",
    "conflict": "specs: [hwloc]\n  packages: {hwloc: {conflict: [+cuda]}}",
    "named require": "specs: [hwloc]\n  packages: {hwloc: {require: [{spec: hwloc@2 ~cuda}]}}",
    "groups": "specs: [hwloc]\n  packages: {hwloc: {require: [{one_of: ['@1 ~cuda', '@2 ~cuda']}]}}",
}


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: ".".join(map(str, release)))
@pytest.mark.parametrize("how", WITHOUT_CUDA)
def test_without_the_gpu_means_the_same_however_it_is_said(
    how: str, release: tuple[int, ...]
) -> None:
    environment = composed(
        f"spack:\n  {WITHOUT_CUDA[how]}\n", gpu="cuda@12", gpu_arch="80", spack=release
    )
    assert environment.without_gpu == ("hwloc",)
    rules = str(packages(environment)["hwloc"]["require"])
    assert "~cuda" in rules and "target=haswell" in rules
    assert any("hwloc is built without cuda" in warning for warning in environment.warnings)
    assert "cuda_arch=80" not in str(packages(environment)["hwloc"])


def test_what_stands_behind_a_compiler_is_read_as_the_release_does() -> None:
    text = "spack:\n  specs:\n  - hwloc@2 %gcc@12 ~cuda target=haswell\n"
    environment = composed(text, gpu="cuda@12")
    assert environment.without_gpu == ("hwloc",) and "gcc" not in packages(environment)
    with pytest.raises(BadDescription) as caught:
        composed(text, gpu="cuda@12", spack=(1, 1, 0))
    assert caught.value.line == 3
    assert "Write ~cuda target=haswell before %gcc@12." in str(caught.value)
    assert composed("spack:\n  specs: [hdf5 %gcc@12 languages=c]\n", spack=(1, 1, 0)).roots


@pytest.mark.parametrize(
    ("text", "release", "word"),
    [
        ("specs: ['a %c=gcc@12']", (0, 23, 1), "1.0"),
        ("specs: ['a ^[virtuals=mpi] b']", (0, 19, 2), "0.21"),
        ("specs: ['a@=1']", (0, 19, 2), "0.20"),
        ("specs: ['a x=y^zlib']", (1, 1, 0), "blank"),
        ("specs: ['a%dpcpp']", (1, 1, 0), "%intel-oneapi-compilers"),
        (
            "specs: [a]\n  packages: {gcc: {externals: [{spec: \"gcc@12 languages:='c'\", prefix: /usr}]}}",
            (0, 23, 1),
            "languages=",
        ),
    ],
)
def test_what_the_release_does_not_read(text: str, release: tuple[int, ...], word: str) -> None:
    with pytest.raises(BadDescription) as caught:
        composed(f"spack:\n  {text}\n", spack=release)
    assert caught.value.code is ErrorCode.BAD_DESCRIPTION and word in str(caught.value)


def test_every_renamed_compiler_is_translated() -> None:
    old = ["clang", "oneapi@2023", "rocmcc", "intel", "arm", "dpcpp", "pgi", "gcc@12", "nvhpc"]
    environment = composed(
        f"spack:\n  specs: [a]\n  packages: {{all: {{compiler: [{', '.join(old)}]}}}}\n",
        spack=(1, 2),
    )
    assert packages(environment)["c"]["prefer"] == [
        "llvm",
        "intel-oneapi-compilers@2023",
        "llvm-amdgpu",
        "intel-oneapi-compilers-classic",
        "acfl",
        "intel-oneapi-compilers",
        "nvhpc",
        "gcc@12",
        "nvhpc",
    ]


def test_a_packages_own_variants_do_not_hide_the_gpu() -> None:
    """Spack joins them to one spec, in which a variant stands once."""
    environment = composed(
        "spack:\n  specs: [kokkos]\n  packages:\n    all: {variants: '+shared cuda_arch=70 +cuda'}\n"
        "    kokkos: {variants: [+openmp, 'cuda_arch=none'], require: '@4'}\n",
        gpu="cuda@12",
        gpu_arch="80",
    )
    assert packages(environment)["all"]["variants"] == ["+shared", "+cuda cuda_arch=80"]
    assert packages(environment)["kokkos"]["variants"] == ["+openmp", "+cuda cuda_arch=80"]


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        ("{default: {root: x, projections: {all: '{name}'}}}", {}, ["projections"]),
        (
            "{default: {link: roots, select: [a], exclude: [b]}}",
            {},
            ["select", "exclude", "link"],
        ),
        ("{default: {link: run, link_type: copy}}", {"link": "run", "link_type": "copy"}, []),
    ],
)
def test_every_program_is_in_the_default_view(
    text: str, kept: dict[str, str], dropped: list[str]
) -> None:
    environment = composed(f"spack:\n  specs: [a]\n  view: {text}\n")
    assert environment.spack is not None
    assert environment.spack["view"] == {"default": {**kept, "root": "/opt/view"}}
    assert [
        word for warning in environment.warnings for word in dropped if word in warning
    ] == dropped


@pytest.mark.parametrize("unify", ["false", "when_possible"])
def test_no_view_where_specs_are_apart_and_none_is_wanted(unify: str) -> None:
    text = f"spack:\n  specs: [hdf5@1.10, hdf5@1.14]\n  concretizer: {{unify: {unify}}}\n"
    with pytest.raises(BadDescription) as caught:
        composed(text)
    assert caught.value.code is ErrorCode.CONFLICT and "view: false" in caught.value.hint
    assert "hdf5@1.10" in caught.value.message and caught.value.line == 2
    environment = composed(text + "  view: false\n")
    assert environment.spack is not None and environment.spack["view"] is False
    assert not environment.has_view
    assert composed("spack:\n  specs: [a]\n  view: false\n").has_view


@pytest.mark.parametrize(
    ("specs", "is_twice"),
    [
        ("[hdf5@1.10, hdf5@1.14]", True),
        ("[hdf5+mpi, hdf5~mpi]", True),
        ("[{matrix: [[hdf5], ['%gcc@11', '%gcc@12']]}]", True),
        ("[{matrix: [[hdf5], ['%gcc', '%clang']]}]", True),
        ("[hdf5, hdf5+mpi]", False),
        ("[hdf5@1.14, hdf5@1.14.3 api=v110]", False),
        ("[hdf5 api=v110, hdf5 api=v112]", False),
    ],
)
def test_two_specs_of_one_package(specs: str, is_twice: bool) -> None:
    text = f"apt: [gcc-11, clang-14]\nspack:\n  specs: {specs}\n"
    if not is_twice:
        assert composed(text).has_view
        return
    with pytest.raises(BadDescription) as caught:
        composed(text)
    assert "unify: false" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "requirements", "word"),
    [
        ("apt: [libopenmpi-dev]", None, "libopenmpi-dev"),
        ("apt: [mpich]", None, "mpich"),
        ("apt: [mpi-default-dev]", None, "mpi-default-dev"),
        ("apt: [libhdf5-mpi-dev=1.10]", None, "libhdf5-mpi-dev"),
        ("apt: [libpetsc-real3.18-dev]", None, "libpetsc"),
        ("apt: [libmpich12]", None, "libmpich12"),
        ("apt: [gromacs]", None, "gromacs"),
        ("apt: [lammps]", None, "lammps"),
        ("apt: [libopencv-dev]", None, "libopencv-dev"),
        ("apt: ['octave:amd64=7.3.0-2']", None, "octave"),
        ("apt: [python3-paraview]", None, "python3-paraview"),
        ("apt: [libboost1.81-all-dev]", None, "libboost1.81-all-dev"),
        ("pip: [OpenMPI]", None, "openmpi"),
        ("pip: [impi_rt==2021.1]", None, "impi-rt"),
        ("", "numpy\nmpich>=4\n", "line 2"),
    ],
)
def test_a_second_mpi_is_told(text: str, requirements: str | None, word: str) -> None:
    environment = composed(text, requirements=requirements, mpi="openmpi@4")
    assert any("second MPI" in warning and word in warning for warning in environment.warnings)
    assert not composed(text, requirements=requirements).warnings


@pytest.mark.parametrize(
    "name",
    [
        *("libimpi-notes", "compiler-tools", "python3-numpy", "mpich-less"),
        *("mpich-doc", "openmpi-common", "lammps-data", "libhdf5-dev", "libmediainfo-dev"),
    ],
)
def test_other_packages_are_no_mpi(name: str) -> None:
    told = composed(f"apt: [{name}]", mpi="openmpi@4").warnings
    assert bool(told) is (name == "mpich-less")


def test_a_wheel_of_a_file_that_another_names_is_told() -> None:
    files = {"base.txt": "six\nmpich\n"}
    step = StepFolder(kind_of=lambda path: "file" if path in files else None, read=files.get)
    told = compose(
        described("apt: [jq]\n"),
        machine(mpi="openmpi@4"),
        base=base(),
        requirements="-r base.txt\n",
        step=step,
    ).warnings
    assert any("base.txt, line 2: the wheel mpich" in warning for warning in told)


def test_packages_of_another_architecture() -> None:
    with pytest.raises(BadDescription) as caught:
        composed("apt:\n- jq\n- libc6:i386=2.36\n")
    assert caught.value.line == 3 and "libc6=2.36" in caught.value.hint
    assert composed("apt: ['libc6:amd64', 'python3:any', 'xz:all']\n").apt


def test_a_requirements_file_that_pip_hides() -> None:
    told = composed("pip: [six]", requirements="numpy\n").warnings
    assert any("requirements.txt is not used" in warning for warning in told)


def test_externals_in_odd_places_are_told() -> None:
    told = composed(
        "spack:\n  specs: [py-x]\n  packages:\n    python:\n      externals:\n"
        "      - spec: python@3.11\n        prefix: /cluster/python/311\n"
    ).warnings
    assert any("line 7" in warning and "/cluster/python/311" in warning for warning in told)


def test_a_workflow_may_name_its_mpi_when_the_machine_does_not() -> None:
    assert composed("spack:\n  specs: [hdf5 ^mpich]\n").roots == ("hdf5 ^mpich",)


def test_a_compiler_that_cannot_make_the_target() -> None:
    with pytest.raises(UserError) as caught:
        composed("spack:\n  specs: [zlib]\n", architecture="genoa")
    assert caught.value.code is ErrorCode.COMPILER_TOO_OLD
    assert "zen4" in caught.value.message and "gcc 12.2.0" in caught.value.message
    assert '"zen3"' in caught.value.hint


@pytest.mark.parametrize(
    "text", ["apt: [jq]\n", "apt: [gcc-13, g++-13]\nspack:\n  specs: [zlib]\n"]
)
def test_other_compilers_or_none_are_fine(text: str) -> None:
    assert composed(text, architecture="genoa").target == "zen4"


def test_a_preferred_compiler_that_cannot_make_the_target() -> None:
    """Spack then takes another: the preference is no reason to refuse, but to say so."""
    environment = composed(corpus()["kaust/exageostat"], architecture="milan")
    assert any("zen3" in warning and "takes another" in warning for warning in environment.warnings)
    with pytest.raises(UserError) as caught:
        composed(
            corpus()["kaust/exageostat"],
            architecture="milan",
            apt_base=base(compilers={"gcc": "8.3.0"}),
        )
    assert caught.value.code is ErrorCode.COMPILER_TOO_OLD


def test_without_a_known_base_there_is_a_warning() -> None:
    environment = composed("spack:\n  specs: [zlib]\n", spack=None)
    assert any("not known" in warning for warning in environment.warnings)


@pytest.mark.parametrize(
    ("text", "requirements", "expected"),
    [
        ("", "six\n", ("six\n", False)),
        ("pip: [bc]\n", "six\n", ("bc\n", False)),
        ("pip: []\n", "six\n", (None, False)),
        ("", " \n", (None, False)),
        ("", "six\n-r other.txt\n", ("six\n-r other.txt\n", True)),
        ("", "-e .\n", ("-e .\n", True)),
        ("", "-rbase.txt\n", ("-rbase.txt\n", True)),
        ("", "--no-index\n-f wheels\nfoo\n", ("--no-index\n-f wheels\nfoo\n", True)),
        ("", "external/gt4py\n", ("external/gt4py\n", True)),
        ("", "foo-1.0.tgz\n", ("foo-1.0.tgz\n", True)),
        ("", "./wheels/x-1-py3-none-any.whl\n", ("./wheels/x-1-py3-none-any.whl\n", True)),
        (
            "",
            "--extra-index-url https://host.test/\nsix\n",
            ("--extra-index-url https://host.test/\nsix\n", False),
        ),
    ],
)
def test_requirements_beside_the_description(
    text: str, requirements: str, expected: tuple[str | None, bool]
) -> None:
    environment = composed(text, requirements=requirements)
    assert (environment.requirements, environment.requirements_in_step) == expected


def test_a_post_install_script_wants_sources_built() -> None:
    assert composed("spack:\n  specs: [zlib]\n", has_post_install=True).from_source
    assert not composed("spack:\n  specs: [zlib]\n").from_source


def test_the_same_input_gives_the_same_text() -> None:
    text = corpus()["permedcoe/covid19"]
    assert composed(text, mpi="openmpi@4") == composed(text, mpi="openmpi@4")


GROUPS = """
spack:
  specs:
    - lz4
    - {group: tools, specs: [cmake], matrix: [[hdf5], [+hl]]}
  concretizer: {duplicates: {strategy: none}, static_analysis: true}
"""


def test_groups_reach_a_spack_that_has_them() -> None:
    environment = composed(GROUPS, mpi="openmpi@4", spack=(1, 2, 0))
    assert environment.spack is not None
    assert [entry for entry in environment.spack["specs"] if isinstance(entry, dict)] == [
        {"group": "tools", "specs": ["cmake"], "matrix": [["hdf5"], ["+hl"]]}
    ]
    assert environment.roots == ("lz4", "cmake", "openmpi@4")
    assert environment.spack["concretizer"]["static_analysis"] is True


def test_a_spack_without_groups_gets_their_specs_and_only_settings_that_it_knows() -> None:
    environment = composed(GROUPS, spack=(0, 19, 2))
    assert environment.spack is not None
    assert environment.spack["specs"] == ["lz4", "cmake", {"matrix": [["hdf5"], ["+hl"]]}]
    assert not {"duplicates", "static_analysis"} & set(environment.spack["concretizer"])
    assert any("has no groups" in warning for warning in environment.warnings)
    assert sum("does not read it there" in warning for warning in environment.warnings) == 2


def test_a_groups_specs_are_compared_with_the_machine() -> None:
    with pytest.raises(BadDescription) as caught:
        composed("spack:\n  specs: [{group: a, specs: [hdf5 ^mpich]}]", mpi="openmpi@4")
    assert caught.value.code is ErrorCode.CONFLICT


NEW_FORMS = """\
spack:
  specs:
    - zlib
    - {group: tools, specs: [cmake]}
  view:
    more: {root: /opt/more, group: [tools, default], link_dirs: false}
    default: {root: /somewhere, group: tools}
  concretizer:
    force: true
    splice: {automatic: true}
    os_compatible: {debian12: [debian11]}
    concretization_cache: {enable: true}
    externals: {completion: architecture_only}
"""


@pytest.mark.parametrize(
    ("release", "view", "settings"),
    [
        ((1, 2, 0), {"root": "/opt/more", "group": ["tools", "default"], "link_dirs": False}, True),
        ((1, 1, 0), {"root": "/opt/more"}, True),
        ((0, 23, 1), {"root": "/opt/more"}, False),
    ],
)
def test_what_newer_schemas_have_is_kept_where_it_is_read(
    release: tuple[int, ...], view: dict[str, Any], settings: bool
) -> None:
    environment = composed(NEW_FORMS, spack=release)
    body = environment.spack
    assert body is not None
    assert body["view"] == {"more": view, "default": {"root": "/opt/view"}}
    assert ("externals" in body["concretizer"]) is settings
    told = " ".join(environment.warnings)
    for unused in ("force", "splice", "os_compatible", "concretization_cache"):
        assert unused not in body["concretizer"]
        assert f"concretizer: {unused} is not used" in told
    assert "whatever root says" in told and "group of the default view" in told
