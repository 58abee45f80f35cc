# gather_wheels.sh [FOLDER]: fetch what pip.sh would install to /cic-bundle/wheels. Of what has no wheel, one is made here.
. /run/cic/lib.sh
prepare_pip
wheels=/cic-bundle/wheels requirements=/run/cic/requirements.txt
mkdir -p "$wheels"
if ! has_pip; then
    echo python3-pip >/tmp/cic-pip
    sh /run/cic/gather_debs.sh pip apt.sh /tmp/cic-pip
    sh /run/cic/apt.sh /tmp/cic-pip
    rm /tmp/cic-pip
fi
if [ -n "${1:-}" ]; then
    cd "$1"
    requirements=requirements.txt
fi
run_pip download --dest "$wheels" -r "$requirements"
if [ -n "${1:-}" ] || [ -n "$(find "$wheels" -type f ! -name '*.whl')" ]; then
    run_pip download --dest "$wheels" setuptools wheel # what most projects are built with
    run_pip wheel --wheel-dir "$wheels" --find-links "$wheels" -r "$requirements"
fi
