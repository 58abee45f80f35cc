# Decide what will be installed: spack.yaml becomes spack.lock. Nothing is installed yet.
. /run/cic/lib.sh
# What the description takes from the image has to be there: Spack never looks (spack/spack #2208).
missing=
if [ -r /run/cic/externals ]; then
    while read -r place name where; do
        if [ ! -e "$place" ]; then
            echo "cic: not in the image: $where: $name is taken from $place, and nothing is there" >&2
            missing=yes
        fi
    done </run/cic/externals
fi
[ -z "$missing" ] || fail "an external of the description is not in the image"
find_spack
take_environment spack.yaml
# Told to, Spack (from 1.0 on) leaves out of the problem what no solution can hold: of fftw, lz4, bzip2 and openmpi 1.2
# finds the same in four fifths of the time. The system's scope is the lowest, so whoever sets it otherwise is obeyed.
schema=$(dirname "$(readlink -f "$(command -v spack)")")/../lib/spack/spack/schema/concretizer.py
if grep -q '"static_analysis"' "$schema" 2>/dev/null && [ ! -e /etc/spack/concretizer.yaml ]; then
    mkdir -p /etc/spack
    printf 'concretizer:\n  static_analysis: true\n' >/etc/spack/concretizer.yaml
fi
set --
if [ -d /run/cic/solutions ]; then # what was solved before, by the text of the whole problem
    set -- -c concretizer:concretization_cache:enable:true -c concretizer:concretization_cache:url:/run/cic/solutions
fi
# The solver allocates all the time: for those four, 1.2 needs 9.7 s of CPU time with mimalloc and 10.9 s without, 0.23 13.1 s
# and 15.5 s. The solver that Spack fetches where Python has none comes with it.
for library in /usr/lib/*/libmimalloc.so.[0-9]; do
    [ ! -e "$library" ] || export LD_PRELOAD="$library"
done
# Most solutions are proven with a third of the packages, in a third of the time. The others are found by Spack as it is.
if [ ! -e /run/cic/fewer_packages.py ] || ! spack "$@" -e /opt/cic python /run/cic/fewer_packages.py; then
    spack "$@" -e /opt/cic concretize
fi
