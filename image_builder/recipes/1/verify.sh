# verify.sh FOLDER TREE...: hold the slim image against this full one; FOLDER is the step's, a TREE is where Spack installs.
. /run/cic/lib.sh
[ ! -r /opt/cic/activate.sh ] || . /opt/cic/activate.sh
python /run/cic/verify.py "$@" >/cic-report.json
