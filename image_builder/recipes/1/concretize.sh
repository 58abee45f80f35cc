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
set --
if [ -d /run/cic/solutions ]; then # what was solved before, by the text of the whole problem
    set -- -c concretizer:concretization_cache:enable:true -c concretizer:concretization_cache:url:/run/cic/solutions
fi
spack "$@" -e /opt/cic concretize
