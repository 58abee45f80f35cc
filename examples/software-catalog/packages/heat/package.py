"""A package whose source lies beside its recipe: nothing is fetched."""

import spack
from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Heat(Package):
    """Heat in a bar, by finite differences; the bar is divided among MPI processes."""

    has_code = False

    version("1.0")

    if spack.spack_version_info >= (0, 23):  # before, every package may use the compilers
        depends_on("c", type="build")
    depends_on("mpi")

    def install(self, spec, prefix):
        mkdirp(prefix.bin)
        compile_with_mpi = Executable(spec["mpi"].mpicc)
        compile_with_mpi("-O2", "-o", prefix.bin.heat, join_path(self.package_dir, "heat.c"), "-lm")
