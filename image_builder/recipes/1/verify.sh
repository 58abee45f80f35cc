# verify.sh FOLDER: compare the slim image with this full one; FOLDER is the step's.
. /run/cic/lib.sh
[ ! -r /opt/cic/activate.sh ] || . /opt/cic/activate.sh
python /run/cic/verify.py "$@" >/cic-report.json
