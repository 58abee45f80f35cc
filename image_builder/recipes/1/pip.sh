# Install Python packages with the environment's own Python. What the view has already is found and used.
# pip.sh [FOLDER]: the requirements are that folder's own, and may name its files.
. /run/cic/lib.sh
[ ! -r /opt/cic/activate.sh ] || . /opt/cic/activate.sh
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_INPUT=1
index=$(site pip_index_url)
[ -z "$index" ] || export PIP_INDEX_URL="$index"

if ! python3 -m pip --version 2>/dev/null && ! python3 -m ensurepip 2>/dev/null; then
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
    # As python3 -m pip, but a random.py of the step is no module of pip's own Python.
    python3 -c 'import runpy, sys
sys.path[:] = [path for path in sys.path if path]
runpy.run_module("pip", run_name="__main__", alter_sys=True)' install ${report:+--report "$report"} -r requirements.txt
else
    python3 -m pip install ${report:+--report "$report"} -r /run/cic/requirements.txt
fi
mkdir -p /opt/cic
[ -z "$report" ] || python3 /run/cic/used.py /opt/cic/pip <"$report"
rm -r "$kept"
