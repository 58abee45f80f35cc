"""A stand-in for CUDA, which no mirror of ours has: a header, and a compiler driver that says what it is."""

import os

from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Cuda(Package):
    """Has the name, versions and variants of CUDA, and nothing that runs on a GPU."""

    has_code = False

    version("12.4.0")
    version("10.2.89")

    variant("allow-unsupported-compilers", default=False, description="Take any host compiler")
    variant("dev", default=False, description="As CUDA has it; nothing here")

    def install(self, spec, prefix):
        mkdirp(prefix.bin, prefix.include)
        with open(prefix.include.join("cuda_stand_in.h"), "w") as file:
            file.write(f'#define CUDA_STAND_IN "{spec.version}"\n')
        with open(prefix.bin.nvcc, "w") as file:
            file.write(f'#!/bin/sh\necho "stand-in for nvcc {spec.version}"\n')
        os.chmod(prefix.bin.nvcc, 0o755)
