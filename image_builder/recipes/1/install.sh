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

jobs=$(cat /run/cic/jobs 2>/dev/null || nproc) # a debug image has no such file
keep=${1:-}
# Where no stage stays nothing is compiled again, and Autotools packages need no dependency tracking, which takes 11 of the
# 16 s of each `configure` of FFTW. This variable is what `--disable-dependency-tracking` sets, and Spack passes it on (since
# 1.1 it ignores a CONFIG_SITE). A base image whose packages need the tracking has ENV with "yes".
[ -n "$keep" ] || export enable_dependency_tracking="${enable_dependency_tracking-no}"
mirrors=$scope
set -- --only-concrete --fail-fast --jobs "$jobs" ${keep:+--keep-stage}
if [ ! -e /run/cic/parallel.py ]; then # Spack 1.2 shares its jobs out among packages, and shows logs of failures by itself
    set -- spack -C "$scope" -e /opt/cic install "$@"
else
    apart=
    if [ -e /run/cic/autopush.py ]; then # this Spack cannot read what packages.py says of mirrors
        mirrors=/run/cic/private/mirrors
        apart=$mirrors
        mkdir "$mirrors"
    fi
    if [ "$jobs" -gt 1 ]; then # a jobserver of make: below 10, since Spack reads one digit
        mkfifo /run/cic/private/jobserver
        exec 8<>/run/cic/private/jobserver 9<>/run/cic/private/jobserver
        head -c $((jobs - 1)) /dev/zero >&9
        export MAKEFLAGS=" -j$jobs --jobserver-auth=8,9"
    fi
    set -- spack -C "$scope" -e /opt/cic python /run/cic/parallel.py "$apart" "$@" --show-log-on-error
fi
if [ -d /run/cic/packages ]; then # a forced build has a nonce
    [ -z "$keep${CIC_NONCE:-}" ] || roots=--build-roots
    python /run/cic/packages.py install /run/cic/packages /opt/cic/spack.lock "$mirrors" ${roots:+"$roots"} -- "$@"
else
    "$@" --no-cache
fi
unset MAKEFLAGS

python /run/cic/stages.py
python /run/cic/even.py /opt/spack/opt/spack /spack/opt/spack
spack env activate --sh -d /opt/cic | python /run/cic/activation.py
