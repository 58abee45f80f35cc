# Install what spack.lock names, link it into the view, and write down what activating the environment means.
# install.sh [keep-stages]: the stages of the environment's roots stay.
. /run/cic/lib.sh
find_spack

scope=/run/cic/private/scope
mirror=$(site spack_mirror)
[ ! -d /run/cic/sources ] || mirror=file:///run/cic/sources
mkdir -p "$scope"
if [ -n "$mirror" ]; then
    printf 'mirrors:\n  site: "%s"\n' "$mirror" >"$scope/mirrors.yaml"
fi

jobs=$(site build_jobs)
set -- --fail-fast --show-log-on-error --no-cache --jobs "${jobs:-$(nproc)}" ${1:+--keep-stage}
spack -C "$scope" -e /opt/cic install "$@"

python /run/cic/stages.py
spack env activate --sh -d /opt/cic | python /run/cic/activation.py
