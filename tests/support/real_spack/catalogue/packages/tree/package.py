"""A package that Spack has as well, and in newer versions: it tells whose it is."""

from spack.package import *

try:
    from spack_repo.builtin.build_systems.generic import Package
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Tree(Package):
    """A script."""

    has_code = False

    version("1.0")

    def install(self, spec, prefix):
        mkdirp(prefix.bin)
        with open(prefix.bin.tree, "w") as file:
            file.write("#!/bin/sh\necho a tree of the catalogue\n")
        set_executable(prefix.bin.tree)
