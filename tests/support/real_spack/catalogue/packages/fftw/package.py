"""FFTW without the patch that Spack's own package fetches: its source alone is in Debian's tarballs."""

import spack
from spack.package import *

try:
    from spack_repo.builtin.build_systems.autotools import AutotoolsPackage
except ImportError:
    pass  # before Spack 1.0 it comes with spack.package


class Fftw(AutotoolsPackage):
    """Discrete Fourier transforms, in double and single precision as Spack's own package makes them by default."""

    url = "https://www.fftw.org/fftw-3.3.10.tar.gz"

    version("3.3.10", sha256="56c932549852cddcfafdab3820b0200c7742675be92179e59e6215b340e26467")

    if spack.spack_version_info >= (0, 23):  # before, every package may use the compilers
        depends_on("c", type="build")
        depends_on("fortran", type="build")

    build_directory = "double"

    def configure_args(self):
        return ["--enable-shared", "--enable-threads"]

    @run_after("install")
    def install_single(self):
        with working_dir("single", create=True):
            Executable("../configure")(f"--prefix={self.prefix}", "--enable-shared", "--enable-threads",
                                       "--enable-float")
            make()
            make("install")
