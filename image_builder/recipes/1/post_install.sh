# post_install.sh FOLDER: run the step's post_inst.sh there, under its own first line or else by sh. Its exit status
# alone decides.
. /run/cic/lib.sh
cd "$1"
[ ! -r /opt/cic/activate.sh ] || . /opt/cic/activate.sh
if [ "$(head -c 2 post_inst.sh)" = '#!' ]; then
    chmod u+x post_inst.sh
    ./post_inst.sh
else
    sh ./post_inst.sh
fi
