"""Versions and variants against what was asked for."""

from __future__ import annotations

import pytest

from image_builder.spack import spec as spack_spec
from image_builder.spack.spec import unmet, version_satisfies


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("4.1.6", "4"),
        ("4.1.6", "4.1"),
        ("4.1.6", "4.1.6"),
        ("4.1.6", "4:5"),
        ("5.0.3", "4:5"),
        ("4.1", "=4.1"),
        ("4.1.6", "4.1:"),
        ("4.1.6", ":4"),
        ("4.1.6", ":4.1"),
        ("3.1", "1,3"),
        ("main", "main"),
        ("main", "4:"),
        ("git.main=4.1.6", "4"),
        ("git.main=4.1.6", "main"),
        ("git.abc=4.1", "git.abc=4.1"),
        ("2021.10.0", "2021"),
        ("1.0-rc1", ":1.0"),
        ("12.4.0", "12.0:12.4"),
        ("6.5-20250705", "6.5"),
        ("2.0b", "2.0b"),
    ],
)
def test_versions_that_satisfy(version: str, wanted: str) -> None:
    assert version_satisfies(version, wanted)


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("4.1.6", "5"),
        ("41.0", "4"),
        ("4.1.6", "=4.1"),
        ("6.0", "4:5"),
        ("3.9", "4:"),
        ("4.2", ":4.1"),
        ("4.10", "4.1"),
        ("main", ":5"),
        ("4.1", "main"),
        ("1.0-rc1", "1.0:"),
        ("2.2", "1,3"),
        ("git.main=4.1", "git.abc=4.1"),
        ("4", "4.1"),
    ],
)
def test_versions_that_do_not(version: str, wanted: str) -> None:
    assert not version_satisfies(version, wanted)


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        ("x+a~b mode=fast", ""),
        ("x~a", "without ~a"),
        ("x+b", "without +b"),
        ("x+c", "without +c"),
        ("x mode=slow", "without mode=slow"),
        ("x libs=one,two", ""),
        ("x libs=three", "without libs=three"),
        ("x@1.2 target=zen2 cflags=-O3 %gcc@12", ""),
        ("x@2+a", "its version is 1.2.3"),
        ("x mode=*", ""),
    ],
)
def test_what_of_a_spec_a_node_lacks(spec: str, missing: str) -> None:
    parameters = {"a": True, "b": False, "mode": "fast", "libs": ["one", "two"], "cflags": []}
    assert unmet(spack_spec.nodes(spec)[0], "1.2.3", parameters) == missing
