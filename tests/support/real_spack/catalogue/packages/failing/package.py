"""A package that is never finished."""

from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Failing(Package):
    """Needs what is finished before it."""

    has_code = False

    version("1.0")
    depends_on("tiny")

    def install(self, spec, prefix):
        raise InstallError("it is never finished")
