"""The package `foo` that `tests/data/inputs.yaml` names: its version main is a branch."""

from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Foo(Package):
    """Has a branch. It is concretized alone."""

    git = "https://git.invalid/foo"

    version("main", branch="main")
    version("1.0", sha256="00" * 32)
