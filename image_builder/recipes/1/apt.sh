# apt.sh [FILE PINS]: install the Debian packages that the description names, and leave no lists and archives behind.
# Or those of FILE, in the versions that PINS, a file of apt's preferences, tells, be they older than what is there.
# Downloads are kept in a cache mount: apt holds each against the signed lists before it uses it.
. /run/cic/lib.sh
command -v apt-get >/dev/null || fail "the base image has no apt-get, and the description asks for Debian packages"
export DEBIAN_FRONTEND=noninteractive
names=${1:-/run/cic/packages.apt} pins=${2:-}

mirror=$(site apt_mirror | sed 's/[&#]/\\&/g')
if [ -n "$mirror" ]; then
    sources=/run/cic/private/sources.list.d
    mkdir "$sources"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$file" ] || sed -E "s#https?://[^ ]*/(debian|ubuntu)/?( |\$)#$mirror\\2#" "$file" >"$sources/${file##*/}"
    done
fi
set -f
set -- ${mirror:+-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$sources"} \
    ${pins:+-o "Dir::Etc::Preferences=$pins" -o APT::Get::allow-downgrades=true}
apt-get update "$@" -o APT::Update::Error-Mode=any
xargs apt-get install "$@" -o Dir::Cache::Archives=/run/cic/archives -y --no-install-recommends -- <"$names"
drop_apt_caches
