# Install Python packages with the environment's own Python. What the view has already is found and used.
# pip.sh [FOLDER]: the requirements are that folder's own, and may name its files.
. /run/cic/lib.sh
prepare_pip

if ! has_pip; then
    command -v apt-get >/dev/null || fail "the base image has no pip, and no apt-get to install it with"
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-pip
    drop_apt_caches
fi
# What was taken is written down, from pip 22.2 on.
kept=$(mktemp -d)
report=
if python3 -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (22, 2))'; then
    report=$kept/report.json
fi
if [ -n "${1:-}" ]; then
    cd "$1"
    run_pip install ${report:+--report "$report"} -r requirements.txt
else
    python3 -m pip install ${report:+--report "$report"} -r /run/cic/requirements.txt
fi
mkdir -p /opt/cic
[ -z "$report" ] || python3 /run/cic/used.py /opt/cic/pip <"$report"
rm -r "$kept"
