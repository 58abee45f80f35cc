# Install Python packages with the environment's own Python. What the view has already is found and used.
# pip.sh [FOLDER]: the requirements are that folder's own, and may name its files.
. /run/cic/lib.sh
prepare_pip

if ! has_pip; then
    command -v apt-get >/dev/null || fail "the base image has no pip, and no apt-get to install it with"
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        -o Dir::Etc::Preferences=/run/cic/pins.apt python3-pip
    drop_apt_caches
fi
# What was taken is written down, from pip 22.2 on.
kept=$(mktemp -d)
report=
if python3 -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (22, 2))'; then
    report=$kept/report.json
fi
folder=${1:-}
set -- ${report:+--report "$report"}
# A build that is made again gets the files of before: they are fetched by their digests, and pip then finds no others.
# What is built from source may need more to be built with, which comes from the index.
if [ -s /run/cic/pins.pip ]; then
    python3 -m pip download --no-deps --require-hashes --dest "$kept/files" -r /run/cic/pins.pip
    sed 's/ .*//' /run/cic/pins.pip >"$kept/constraints"
    set -- "$@" --find-links "$kept/files" --constraint "$kept/constraints"
    [ -n "$(find "$kept/files" ! -name "*.whl" -type f)" ] || set -- "$@" --no-index
fi
if [ -n "$folder" ]; then
    cd "$folder"
    run_pip install "$@" -r requirements.txt
else
    python3 -m pip install "$@" -r /run/cic/requirements.txt
fi
mkdir -p /opt/cic
[ -z "$report" ] || python3 /run/cic/used.py /opt/cic/pip <"$report"
rm -r "$kept"
