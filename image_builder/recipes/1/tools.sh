# Let Spack find the compilers, those from apt too, and with `externals` the build tools that the image has.
. /run/cic/lib.sh
find_spack
spack compiler find
if [ "${1:-}" = externals ]; then
    spack external find
fi
