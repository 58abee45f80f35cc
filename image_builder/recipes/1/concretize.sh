# Decide what will be installed: spack.yaml becomes spack.lock. Nothing is installed yet.
. /run/cic/lib.sh
find_spack
take_environment spack.yaml
spack -e /opt/cic concretize
