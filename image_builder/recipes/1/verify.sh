# verify.sh FOLDER: compare the slim image with the full one; FOLDER is the step's. Runs in neither of them.
. /run/cic/lib.sh
[ ! -r /opt/cic/activate.sh ] || . /opt/cic/activate.sh
python /run/cic/verify.py "$@" >/cic-report.json
