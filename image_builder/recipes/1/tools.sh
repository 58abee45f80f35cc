# Let Spack find the compilers that the base image has, and with `externals` its build tools. It depends on nothing but
# the base image, so that what Spack prepares for itself here (its package indexes) serves every workflow.
. /run/cic/lib.sh
find_spack
spack compiler find --scope site
if [ "${1:-}" = externals ]; then
    spack external find --scope site
else
    spack providers mpi
fi
