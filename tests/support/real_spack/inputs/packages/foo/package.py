"""The package `foo` that `tests/data/inputs.yaml` names: its version main is a branch."""

from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
    LANGUAGES = ("c",)  # from 1.0 on, %gcc is for packages that say so
except ImportError:
    LANGUAGES = ()  # before Spack 1.0, Package comes with spack.package


class Foo(Package):
    """Has a branch. It is concretized alone."""

    git = "https://git.invalid/foo"

    version("main", branch="main")
    version("1.0", sha256="00" * 32)
    for language in LANGUAGES:
        depends_on(language, type="build")
