# Fetch the sources of all that spack.lock names to /cic-bundle/sources, a mirror as Spack itself makes it. The names that
# Spack links for people to read are left out: it finds each file by what it is.
. /run/cic/lib.sh
find_spack
take_environment spack.yaml spack.lock
mirror=$(site spack_mirror)
[ ! -d /run/cic/sources ] || mirror=file:///run/cic/sources
scope=/run/cic/private/scope
mkdir -p "$scope" /cic-bundle/sources
[ -z "$mirror" ] || printf 'mirrors:\n  site: "%s"\n' "$mirror" >"$scope/mirrors.yaml"
spack -C "$scope" -e /opt/cic mirror create --all --directory /cic-bundle/sources
find /cic-bundle/sources -type l -delete
