"""A small Autotools package, which Debian has as libmd, with what its `configure` found."""

import spack
from spack.package import *

try:
    from spack_repo.builtin.build_systems.autotools import AutotoolsPackage
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Configured(AutotoolsPackage):
    """Message digests, and the log of their `configure` in share/config.log."""

    url = "https://archive.hadrons.org/software/libmd/libmd-1.0.4.tar.xz"

    version("1.0.4", sha256="f51c921042e34beddeded4b75557656559cf5b1f2448033b4c1eec11c07e530f")

    if spack.spack_version_info >= (0, 23):  # before, every package may use the compilers
        depends_on("c", type="build")

    @run_after("install")
    def keep_log(self):
        mkdirp(self.prefix.share)
        install("config.log", self.prefix.share)
