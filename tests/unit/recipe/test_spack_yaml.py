"""What is read of a site's own Spack configuration."""

import pytest

from image_builder.errors import Misconfigured
from image_builder.recipe.spack_yaml import packages_of


@pytest.mark.parametrize("text", [None, "", "packages:\n", "repos: [a]\n", "packages: [a]\n"])
def test_nothing_is_said(text: str | None) -> None:
    assert packages_of(text) == {}


def test_packages_are_read() -> None:
    assert packages_of("packages:\n  openmpi::\n    buildable: false\n  zlib:\n") == {
        "openmpi": {"buildable": False}
    }


def test_a_broken_file_is_the_operators() -> None:
    with pytest.raises(Misconfigured, match=r"packages\.yaml"):
        packages_of("packages:\n\t- x\n")
