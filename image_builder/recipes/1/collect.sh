# Put everything that a slim image gets from this one into /cic-slim, and the Debian packages it needs beside that.
. /run/cic/lib.sh
[ ! -r /opt/cic/activate.sh ] || . /opt/cic/activate.sh
python /run/cic/collect.py
