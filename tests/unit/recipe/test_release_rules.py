"""Requirements that a release of Spack finds no solution for, written so that it does."""

from __future__ import annotations

from typing import Any

import pytest

from image_builder.recipe.release_rules import meetable
from tests.support.planning import composed, knowledge

OLD, MIDDLE, NEW = (0, 23, 1), (1, 1, 0), (1, 2, 0)


def written(name: str, rule: Any, release: tuple[int, ...] = OLD) -> tuple[Any, bool]:
    (found,), told = meetable(name, [rule], release, lambda text: text.startswith("openmpi"))
    return found, bool(told)


@pytest.mark.parametrize(
    ("name", "rule", "found"),
    [
        ("mpi", {"one_of": ["mpich", "openmpi"]}, ("openmpi", False)),
        ("mpi", {"any_of": ["openmpi@5", "openmpi@4"]}, ("openmpi@5", False)),
        ("blas", {"one_of": ["openblas", "netlib-lapack"]}, ("openblas", True)),
        ("hdf5", {"one_of": ["+mpi", "~mpi"]}, ({"one_of": ["+mpi", "~mpi"]}, False)),
        ("hdf5", {"one_of": ["hdf5@1", "hdf5@2"]}, ({"one_of": ["hdf5@1", "hdf5@2"]}, False)),
        (
            "mpi",
            {"one_of": ["mpich", "openmpi"], "when": "+x"},
            ({"one_of": ["mpich", "openmpi"], "when": "+x"}, False),
        ),
        ("mpi", "openmpi@4", ("openmpi@4", False)),
    ],
)
def test_a_choice_between_providers_before_1_0(name: str, rule: Any, found: Any) -> None:
    assert written(name, rule) == found
    assert written(name, rule, MIDDLE) == (rule, False)


@pytest.mark.parametrize(
    ("rule", "plain"),
    [
        ("build_type==Release", "build_type=Release"),
        ("++shared ~~pic", "+shared ~pic"),
        ("@1.14 cflags=='-O3 -g'", "@1.14 cflags='-O3 -g'"),
        ({"spec": "x==1", "when": "y==2"}, {"spec": "x=1", "when": "y==2"}),
        ({"any_of": ["x==1", "@2"], "message": "why"}, {"any_of": ["x=1", "@2"], "message": "why"}),
    ],
)
def test_what_propagates_before_1_2(rule: Any, plain: Any) -> None:
    for release in (OLD, MIDDLE):
        assert written("hdf5", rule, release) == (plain, True)
    assert written("hdf5", rule, NEW) == (rule, False)


def test_what_all_packages_have_needs_no_propagation() -> None:
    assert written("all", "build_type==Release") == ("build_type=Release", False)


def test_what_was_changed_is_told_with_its_line() -> None:
    text = (
        "spack:\n  specs: [hdf5]\n  packages:\n    blas:\n      require:\n"
        "      - one_of: [openblas, netlib-lapack]\n    hdf5: {require: api==v110}\n"
    )
    told = composed(text, spack=OLD, knows=knowledge("0.23.1")).warnings
    assert (
        "eflows4hpc.yaml, line 6: packages: blas: require: Spack 0.23.1 cannot choose between "
        "providers: openblas counts."
    ) in told
    assert any(
        "line 7: packages: hdf5: require: Spack 0.23.1 requires it of hdf5" in one for one in told
    )
