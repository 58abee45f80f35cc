"""A package that is compiled in an instant; its versions differ in nothing but their number."""

import spack
from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Tiny(Package):
    """One small C program."""

    has_code = False

    for number in range(1, 15):
        version(str(number) + ".0")
    version("main", branch="main", git="https://localhost/tiny.git")

    if spack.spack_version_info >= (0, 23):  # before, every package may use the compilers
        depends_on("c", type="build")

    def install(self, spec, prefix):
        mkdirp(prefix.bin)
        with open("tiny.c", "w") as file:
            file.write(f'#include <stdio.h>\nint main(void) {{ return puts("tiny {spec.version}") < 0; }}\n')
        cc = Executable(spack_cc)
        cc("tiny.c", "-o", prefix.bin.tiny)
