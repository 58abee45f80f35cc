# Ask Spack which of the installed packages the environment's roots need at run time.
. /run/cic/lib.sh
find_spack
spack -e /opt/cic python /run/cic/kept.py >/cic-kept.json
