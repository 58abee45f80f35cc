"""A program that is built with CUDA, as its build system's mixin has it."""

import spack
from spack.package import *

try:
    from spack_repo.builtin.build_systems.cuda import CudaPackage
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 they come with spack.package


class GpuProgram(Package, CudaPackage):
    """Prints which CUDA it was built with."""

    has_code = False

    version("1.0")

    if spack.spack_version_info >= (0, 23):  # before, every package may use the compilers
        depends_on("c", type="build")
    depends_on("mpi")

    def install(self, spec, prefix):
        mkdirp(prefix.bin)
        with open("program.c", "w") as file:
            file.write(
                "#include <stdio.h>\n#include <cuda_stand_in.h>\n"
                'int main(void) { return puts("built with CUDA " CUDA_STAND_IN) < 0; }\n'
            )
        cc = Executable(spack_cc)
        cc("-I" + join_path(spec["cuda"].prefix.include), "program.c", "-o", join_path(prefix.bin, "gpu-program"))
