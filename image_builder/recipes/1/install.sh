# Install what spack.lock names, link it into the view, and write down what activating the environment means.
# install.sh [keep-stages]: the environment's roots are built from source, and their stages stay.
. /run/cic/lib.sh
find_spack
take_environment spack.yaml spack.lock

scope=/run/cic/private/scope
mirror=$(site spack_mirror)
[ ! -d /run/cic/sources ] || mirror=file:///run/cic/sources
mkdir -p "$scope"
if [ -n "$mirror" ] && [ -d /run/cic/packages ] && [ ! -e /run/cic/autopush.py ]; then
    printf 'mirrors:\n  site:\n    url: "%s"\n    source: true\n    binary: false\n' "$mirror" >"$scope/mirrors.yaml"
elif [ -n "$mirror" ]; then
    printf 'mirrors:\n  site: "%s"\n' "$mirror" >"$scope/mirrors.yaml"
fi

jobs=$(site build_jobs)
keep=${1:-}
mirrors=$scope
set -- --only-concrete --fail-fast --show-log-on-error --jobs "${jobs:-$(nproc)}" ${keep:+--keep-stage}
if [ -e /run/cic/autopush.py ]; then # this Spack cannot read what packages.py says of mirrors
    mirrors=/run/cic/private/mirrors
    mkdir "$mirrors"
    set -- spack -C "$scope" -e /opt/cic python /run/cic/autopush.py "$mirrors" "$@"
else
    set -- spack -C "$scope" -e /opt/cic install "$@"
fi
if [ -d /run/cic/packages ]; then # a forced build has a nonce
    [ -z "$keep${CIC_NONCE:-}" ] || roots=--build-roots
    python /run/cic/packages.py install /run/cic/packages /opt/cic/spack.lock "$mirrors" ${roots:+"$roots"} -- "$@"
else
    "$@" --no-cache
fi

python /run/cic/stages.py
spack env activate --sh -d /opt/cic | python /run/cic/activation.py
